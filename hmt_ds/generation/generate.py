"""`hmt-ds generate`: read a document, and continue prompts that follow it."""

import copy
from collections.abc import Sequence
from pathlib import Path

from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList, TextStreamer

from hmt_ds.conversion.conversion_error import ConversionError
from hmt_ds.generation.interrupt import UntilInterrupted
from hmt_ds.generation.memory_file import save_memory
from hmt_ds.generation.model import Asked, load_model
from hmt_ds.generation.options import GenerateOptions
from hmt_ds.generation.reading import encode, pad_left, read_first, read_text
from hmt_ds.generation.sampling import generation_settings, settings_of
from hmt_ds.inference.segment_cache import SegmentCache


def generate(source: Path, options: GenerateOptions, overrides: list[str]) -> None:
    """Print the continuation of every prompt: token by token if there is one prompt, else each under its prompt.

    Args:
        source: folder of a run, one of its checkpoints, or a folder that ``hmt-ds convert`` wrote.
        options: options of `hmt-ds generate`.
        overrides: transformers' generation settings as words, such as ``["--generation.top_p", "0.9"]``.

    Raises:
        ConversionError: the model or a file cannot be read or written; with a line for each problem.
        ConfigError: a generation setting or the recipe is wrong.
        BackboneError, CheckpointError, DataError: backbone, checkpoint or tokenizer cannot be used.
        KeyboardInterrupt: Ctrl-C was pressed; a first one during an answer is raised when its text is printed.
    """
    prompts, given = prompts_of(options), settings_of(overrides)
    until = UntilInterrupted()
    continue_prompts(load_model(source, options), prompts, options, given, until)
    if until.hit:
        raise KeyboardInterrupt


def continue_prompts(
    asked: Asked, prompts: list[str], options: GenerateOptions, given: dict[str, object], until: UntilInterrupted
) -> None:
    """Read the document that the options name, and print the continuation of every prompt behind it.

    Args:
        asked: the model and its tokenizer.
        prompts: the prompts; without any the document itself is continued.
        options: options of `hmt-ds generate`.
        given: transformers' generation settings from the command line, by name.
        until: ends generation after Ctrl-C.

    Raises:
        ConversionError: a file cannot be read or written.
        ConfigError: a generation setting is wrong.
    """
    settings = generation_settings(asked, options, given)
    cache = read_first(asked, options)
    if options.save_memory is not None:
        if cache.rows is None:
            raise ConversionError(
                "--save-memory: no document was read, so there is no memory to save: give --document FILE"
            )
        size = save_memory(cache, options.save_memory, asked.model, asked.tokenizer)
        print(f"memory      {options.save_memory} ({size:,} bytes)")
    if not prompts and options.save_memory is None:
        prompts = [""]  # go on with the document itself
    with until:
        print_answers(asked, cache, prompts, options.batch, settings, until)


def print_answers(
    asked: Asked,
    cache: SegmentCache,
    prompts: Sequence[str],
    batch: int,
    settings: GenerationConfig,
    until: UntilInterrupted,
) -> None:
    """Print the continuation of each prompt; stop at the first Ctrl-C.

    Args:
        asked: the model and its tokenizer.
        cache: cache of one row (one document), which every prompt continues; changed if there is one prompt.
        prompts: the prompts; a single one is printed token by token, except with beams.
        batch: largest number of prompts continued together.
        settings: transformers' generation settings.
        until: ends generation after Ctrl-C.
    """
    rows = [encode(asked.tokenizer, prompt, begins=cache.rows is None) for prompt in prompts]
    if len(rows) == 1 and settings.num_beams in (None, 1):
        stream = TextStreamer(asked.tokenizer, skip_prompt=True, skip_special_tokens=True)
        answer(asked, cache, rows, settings, until, stream)
        return
    for at in range(0, len(rows), batch):
        if until.hit:
            return
        texts = answer(asked, copy.deepcopy(cache), rows[at : at + batch], settings, until)
        for prompt, text in zip(prompts[at:], texts, strict=False):
            print(f"--- {prompt}\n{text}" if len(rows) > 1 else text)


def prompts_of(options: GenerateOptions) -> list[str]:
    """Return all prompts: those given by --prompt, then the lines of the file given by --prompts, without blank ones.

    Args:
        options: options of `hmt-ds generate`.

    Raises:
        ConversionError: the file cannot be read or has no prompt, or one of several prompts is blank.
    """
    prompts = list(options.prompt)
    if options.prompts is not None:
        lines = [line for line in read_text(options.prompts).splitlines() if line.strip()]
        if not lines:
            raise ConversionError(f"--prompts: {options.prompts} has no line with text: write one prompt per line")
        prompts += lines
    if len(prompts) > 1 and not all(prompt.strip() for prompt in prompts):
        raise ConversionError(f"--prompt: one of {len(prompts)} prompts is blank: give each some text, or leave it out")
    return prompts


def answer(
    asked: Asked,
    cache: SegmentCache,
    rows: Sequence[Sequence[int]],
    settings: GenerationConfig,
    until: UntilInterrupted,
    streamer: TextStreamer | None = None,
) -> list[str]:
    """Generate continuations of prompts in one batch.

    Args:
        asked: the model and its tokenizer.
        cache: cache of one row (one document), which the prompts continue; changed.
        rows: token ids of each prompt.
        settings: transformers' generation settings.
        until: ends generation after Ctrl-C.
        streamer: prints the text of a single prompt while it is generated; None to print nothing.

    Returns:
        The generated text of each prompt.

    Raises:
        ConversionError: a prompt has no token and the cache is empty.
    """
    rows = [row or last_token(cache) for row in rows]
    ids, mask = pad_left(rows, pad_of(settings), asked.model.device)
    how = {"generation_config": settings, "tokenizer": asked.tokenizer, "streamer": streamer}
    how["stopping_criteria"] = StoppingCriteriaList([until])
    how["logits_processor"] = LogitsProcessorList([asked.agreement] if asked.agreement else [])
    new = asked.model.generate(ids, attention_mask=mask, past_key_values=cache, **how)[:, ids.shape[1] :]
    return asked.tokenizer.batch_decode(new, skip_special_tokens=True)


def last_token(cache: SegmentCache) -> list[int]:
    """Remove the last token from a cache of one row and return its id, in a list.

    An empty prompt is continued by reading that token again, because generation needs at least one.

    Args:
        cache: the cache.

    Raises:
        ConversionError: the cache is empty.
    """
    if cache.rows is None:
        raise ConversionError("an empty prompt cannot be continued without a document: give a text, or --document FILE")
    token = int(cache.rows.tokens[0, cache.rows.lengths[0] - 1])
    cache.seen = 1
    cache.crop(-1)
    return [token]


def pad_of(settings: GenerationConfig) -> int:
    """Return the token id to pad batches with: ``pad_token_id`` of the settings, else the first EOS token, else 0."""
    ends = settings.eos_token_id
    first = ends[0] if isinstance(ends, list) else ends
    return next((token for token in (settings.pad_token_id, first) if token is not None), 0)
