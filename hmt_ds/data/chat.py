"""Conversations as text by a chat template, with the spans of the assistant's answers."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from hmt_ds.data.errors import DataError, first_line

ROLES = ("system", "developer", "user", "assistant", "tool")
# {"from": "human", "value": ...}, as ShareGPT and many data sets after it have messages
OTHER_NAMES = {"human": "user", "gpt": "assistant"}
# Some templates write today's date, and tokens would change from day to day; 26 July 2024 is Llama 3's own default.
DATE = {"%d": "26", "%b": "Jul", "%B": "July", "%m": "07", "%y": "24", "%Y": "2024"}
FIXED_DATE = "".join(f" | replace('{code}', '{value}')" for code, value in DATE.items())
FIXED_DATE = f"{{% macro strftime_now(format) %}}{{{{ format{FIXED_DATE} }}}}{{% endmacro %}}"
MARKS_ANSWERS = re.compile(r"\{%-?\s*generation\s*-?%\}")  # the keyword of transformers around answers

STAND_IN = "\u2063other words\u2063"

Message = dict[str, Any]
Span = tuple[int, int]


def render_chat(
    messages: object, tokenizer: PreTrainedTokenizerBase, template: str | None = None
) -> tuple[str, list[Span]]:
    """Render a conversation.

    Args:
        messages: A list of messages, each with `role` and `content` (or `from` and `value`).
        tokenizer: Its special tokens are known to the template.
        template: A Jinja template; None for the tokenizer's own.

    Returns:
        The text, and the spans of answers in it: what the model must write itself, up to the token that ends a turn. A
        template that marks them with `{% generation %}` says where they are; else an answer is what its message adds
        to the conversation before it, behind the generation prompt.

    Raises:
        DataError: The messages are none, the template refuses them, or it does not say where the answers are.
    """
    chat = check_messages(messages)
    template = tokenizer.get_chat_template(template)
    template = FIXED_DATE + template if "strftime_now" in template else template
    marked = bool(MARKS_ANSWERS.search(template))
    text, spans = render(chat, tokenizer, template, return_assistant_tokens_mask=marked)
    numbers = [number for number, message in enumerate(chat) if message["role"] == "assistant"]
    if not marked:
        spans = [added_by(chat, number, text, tokenizer, template) for number in numbers]
    written = [text[begin:end] for begin, end in spans]
    for number, message in enumerate(chat, start=1):
        is_answer = message["role"] == "assistant"
        for what, words in words_of(message):
            if not any(words in one for one in (written if is_answer else [text])):
                does = "marks no answer that has" if marked and is_answer else "does not write"
                raise DataError(f"message {number}: the chat template {does} its {what}: name another")
    return text, spans


def added_by(chat: list[Message], number: int, text: str, tokenizer: PreTrainedTokenizerBase, template: str) -> Span:
    """Return the span of an answer in the rendered conversation, without what a template writes behind the turn's end.

    Raises:
        DataError: The conversation before the message is rendered in another way than within the whole.
    """
    before, _ = render(chat[:number], tokenizer, template, add_generation_prompt=True)
    if not text.startswith(before):
        raise DataError(
            f"message {number + 1}: the chat template writes the conversation up to here in another way than within "
            "the whole, so its answers cannot be told apart: mark them in the template with {% generation %}"
        )
    after, _ = render(chat[: number + 1], tokenizer, template)
    if not text.startswith(after):
        return len(before), end_of(chat, number, text, tokenizer, template)
    ended = after.rstrip()
    at_token = len(ended) > len(before) and ended.endswith(tuple(tokenizer.get_added_vocab()))
    return len(before), len(ended if at_token else after)


def end_of(chat: list[Message], number: int, text: str, tokenizer: PreTrainedTokenizerBase, template: str) -> int:
    """Return where an answer ends that a template writes in another way at a conversation's end than within it.

    What stands behind the answer is what stands behind other words in its place; the token that ends the turn counts.

    Raises:
        DataError: The answer makes a difference elsewhere too.
    """
    others = [*chat[:number], chat[number] | {"content": STAND_IN}, *chat[number + 1 :]]
    _, found, behind = render(others, tokenizer, template)[0].partition(STAND_IN)
    if not found or STAND_IN in behind or not text.endswith(behind):
        raise DataError(
            f"message {number + 1}: what the chat template writes behind this answer depends on it, so its end cannot "
            "be told: mark answers in the template with {% generation %}"
        )
    token = next((token for token in tokenizer.get_added_vocab() if behind.startswith(token)), "")
    return len(text) - len(behind) + len(token)


def words_of(message: Message) -> list[tuple[str, str]]:
    """Return what a template must write of a message, each with its name for errors.

    Thoughts and blanks around a text may be left out, and results of tools be written in another way, such as JSON.
    """
    if message["role"] == "tool":
        return []
    called = [call.get("function", call) for call in message.get("tool_calls") or [] if isinstance(call, Mapping)]
    names = [call["name"] for call in called if isinstance(call, Mapping) and isinstance(call.get("name"), str)]
    text = (message.get("content") or "").rpartition("</think>")[2].strip()
    return [("text as it is", text), *(("tool calls", name) for name in names)]


def render(
    chat: list[Message], tokenizer: PreTrainedTokenizerBase, template: str, **options: bool
) -> tuple[str, list[Span]]:
    """Render messages; return the text, and if asked for, the spans that the template marks as answers."""
    try:
        texts, spans = render_jinja_template([chat], chat_template=template, **tokenizer.special_tokens_map, **options)
    except Exception as error:  # a template is a program: it can fail in any way, and refuses by an exception
        raise DataError(f"the chat template refuses it: {first_line(error)}") from None
    return texts[0], spans[0] if spans else []


def check_messages(messages: object) -> list[Message]:
    """Return messages with their roles as templates know them, and without fields that are null.

    Raises:
        DataError: There is no list of messages or no answer, or a message has an unknown role or no text.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise DataError("messages is no list of messages, or empty")
    chat = [check_message(message, number) for number, message in enumerate(messages, start=1)]
    if all(message["role"] != "assistant" for message in chat):
        raise DataError("messages has no answer: none is of role assistant")
    if chat[0]["role"] == "assistant":
        raise DataError("message 1 is an answer: one of role user must come before it")
    return chat


def check_message(message: object, number: int) -> Message:
    """Return one message as templates know it; see `check_messages`."""
    if not isinstance(message, Mapping):
        raise DataError(f"message {number} is no mapping with role and content")
    chosen = {name: value for name, value in message.items() if value is not None}
    if "role" not in chosen and "from" in chosen:
        sender = chosen.pop("from")
        chosen |= {"role": OTHER_NAMES.get(sender, sender), "content": chosen.pop("value", None)}
    role, content = chosen.get("role"), chosen.get("content")
    if role not in ROLES:
        raise DataError(f"message {number} has the role {role!r}; known are {', '.join(ROLES)}")
    if content is None and chosen.get("tool_calls"):
        return chosen
    if not isinstance(content, str):
        raise DataError(f"message {number} of role {role} has no text in content")
    if role == "assistant" and not content.strip() and not chosen.get("tool_calls"):
        raise DataError(f"message {number} of role assistant is empty")
    return chosen


def end_of_answers(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the token that ends an answer in the tokenizer's chat template; None if no special token does."""
    try:
        text, spans = render_chat([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], tokenizer)
    except DataError:
        return None
    ids = tokenizer(text[slice(*spans[-1])].rstrip(), add_special_tokens=False).input_ids
    return ids[-1] if ids and ids[-1] in tokenizer.get_added_vocab().values() else None
