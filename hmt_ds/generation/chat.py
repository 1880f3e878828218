"""`hmt-ds chat`: a conversation on a terminal; earlier turns are remembered only through the model's memory."""

import sys
from pathlib import Path

import torch
from transformers import GenerationConfig, StoppingCriteriaList, TextStreamer

from hmt_ds.generation.interrupt import UntilInterrupted
from hmt_ds.generation.memory_file import save_memory
from hmt_ds.generation.model import Asked, load_model
from hmt_ds.generation.options import ChatOptions
from hmt_ds.generation.reading import encode, read_first, read_ids
from hmt_ds.generation.sampling import generation_settings, settings_of
from hmt_ds.inference.segment_cache import SegmentCache


def chat(source: Path, options: ChatOptions, overrides: list[str]) -> None:
    """Answer the standard input line by line until it ends, and save the memory of the conversation if asked to.

    Args:
        source: folder of a run, one of its checkpoints, or a folder that ``hmt-ds convert`` wrote.
        options: options of `hmt-ds chat`.
        overrides: transformers' generation settings as words, such as ``["--generation.top_p", "0.9"]``.

    Raises:
        ConversionError: the model or a file cannot be read or written; with a line for each problem.
        ConfigError: a generation setting or the recipe is wrong.
        BackboneError, CheckpointError, DataError: backbone, checkpoint or tokenizer cannot be used.
        KeyboardInterrupt: Ctrl-C at the prompt, after the memory is saved; or twice during an answer.
    """
    given = settings_of(overrides)
    asked = load_model(source, options)
    settings = generation_settings(asked, options, given)
    talk = Conversation(asked, settings, read_first(asked, options))
    if not asked.tokenizer.chat_template:
        print("note: the tokenizer has no chat template, so your lines are continued as plain text", file=sys.stderr)
    interrupted = converse(talk)
    if options.save_memory is not None and talk.cache.rows is not None:
        talk.read_pending()
        size = save_memory(talk.cache, options.save_memory, asked.model, asked.tokenizer)
        print(f"memory      {options.save_memory} ({size:,} bytes)")
    if interrupted:
        raise KeyboardInterrupt


def converse(talk: "Conversation") -> bool:
    """Answer the lines of the standard input until it ends; on a terminal, print the prompt ``> `` first.

    Args:
        talk: the conversation.

    Returns:
        Whether Ctrl-C at the prompt ended the conversation.
    """
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return False
        except KeyboardInterrupt:
            print()  # below the terminal's ^C
            return True
        if line.strip():
            talk.say(line)


class Conversation:
    """A conversation with a model, which reads each line once and remembers earlier ones through its memory.

    Attributes:
        asked: the model and its tokenizer.
        settings: transformers' generation settings.
        cache: memory and last segment after the turns so far.
        messages: the turns so far, each with ``role`` and ``content``.
        text: the conversation so far as the chat template writes it; stays empty without a template.
        pending: token ids that were generated but not read into the cache yet.
    """

    def __init__(self, asked: Asked, settings: GenerationConfig, cache: SegmentCache):
        self.asked, self.settings, self.cache = asked, settings, cache
        self.messages: list[dict[str, str]] = []
        self.text = ""
        self.pending: list[int] = []

    def say(self, line: str) -> str:
        """Read a line of the user, and print the model's answer while it is generated.

        Ctrl-C ends the answer; what was generated until then stays in the conversation.

        Args:
            line: what the user says.

        Returns:
            The answer.
        """
        tokenizer, model = self.asked.tokenizer, self.asked.model
        text = self.turn(line)  # which may take the pending end of the last answer over
        ids = [*self.pending, *encode(tokenizer, text, begins=self.begins())]
        self.cache.seen = 0
        given = torch.tensor([ids], device=model.device)
        with UntilInterrupted() as until:
            output = model.generate(
                given,
                attention_mask=torch.ones_like(given),  # the template may write the pad token
                past_key_values=self.cache,
                generation_config=self.settings,
                tokenizer=tokenizer,
                streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
                stopping_criteria=StoppingCriteriaList([until]),
            )[0, len(ids) :].tolist()
        reply: str = tokenizer.decode(output, skip_special_tokens=True)
        self.pending = output[-1:]
        self.messages.append({"role": "assistant", "content": reply})
        self.text += reply
        return reply

    def begins(self) -> bool:
        """Return whether the tokenizer's BOS goes in front of the next line: only of the first one, without a chat
        template.

        A chat template writes its own BOS.
        """
        return self.cache.rows is None and not self.asked.tokenizer.chat_template

    def turn(self, line: str) -> str:
        """Return the text that the model reads for a line of the user, and add the line to the conversation.

        With a chat template it is everything that the template adds to the conversation, else the line itself.

        Args:
            line: what the user says.
        """
        self.messages.append({"role": "user", "content": line})
        if not self.asked.tokenizer.chat_template:
            return f"{line}\n"
        whole = self.render(self.messages)
        if not whole.startswith(self.text):  # a template that rewrites earlier turns: this one alone
            whole, self.text = self.render(self.messages[-1:]), ""
        new = whole.removeprefix(self.text)
        ends = self.settings.eos_token_id
        ended = self.pending and self.pending[0] in (ends if isinstance(ends, list) else [ends])
        if ended and new.startswith(self.asked.tokenizer.decode(self.pending)):
            self.pending = []  # the template writes the end of the answer, too
        self.text = whole
        return new

    def render(self, messages: list[dict[str, str]]) -> str:
        """Return messages as the chat template renders them, up to where the model's answer begins.

        Args:
            messages: the turns, each with ``role`` (`user` or `assistant`) and ``content``.
        """
        return str(self.asked.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def read_pending(self) -> None:
        """Read the last generated tokens of the answer into the cache, so that the memory holds the
        whole conversation."""
        if self.pending:
            read_ids(self.asked.model, self.cache, self.pending)
            self.pending = []
