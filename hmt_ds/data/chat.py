"""Render conversations as text with a chat template, with the character spans of the assistant's answers."""

import itertools
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

MASK = "\ue000"  # a character that no vocabulary has in a special token
STAND_IN = "\u2063other words\u2063"

Message = dict[str, Any]
Span = tuple[int, int]


def render_chat(
    messages: object, tokenizer: PreTrainedTokenizerBase, template: str | None = None
) -> tuple[str, list[Span]]:
    """Render a conversation as text with a chat template.

    Args:
        messages: A list of messages, each a mapping with `role` and `content` (or `from` and `value`).
        tokenizer: Supplies the special tokens that the template writes.
        template: A Jinja template; None for the tokenizer's own.

    Returns:
        The text, and the first and end character of each answer of the assistant, including the token that ends its
        turn. A template marks answers with `{% generation %}`; without marks an answer is the text that its message
        adds to the conversation before it, behind the generation prompt.

    Raises:
        DataError: `messages` is no list of messages or has no answer, the template refuses it or leaves out a text, or
            the answers cannot be told apart from the rest of the rendered text.
    """
    chat = check_messages(messages)
    template = template_of(tokenizer, template)
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
                does = "marks no answer that contains" if marked and is_answer else "does not write"
                raise DataError(f"message {number}: the chat template {does} its {what}: choose another chat_template")
    return text, spans


def template_of(tokenizer: PreTrainedTokenizerBase, template: str | None) -> str:
    """Return a tokenizer's chat template (Jinja), made to write a fixed date instead of today's.

    Args:
        tokenizer: The tokenizer.
        template: Another template to use; None for the tokenizer's own.
    """
    template = tokenizer.get_chat_template(template)
    return FIXED_DATE + template if "strftime_now" in template else template


def written_out(
    messages: object, text: str, pattern: str, tokenizer: PreTrainedTokenizerBase, template: str | None = None
) -> list[Span]:
    """Return first and end character of each special token, such as `</s>`, that a user wrote into a message's text.

    To tell such tokens from those of the chat template, the conversation is rendered once more with placeholders for
    the tokens in messages.

    Args:
        messages: A list of messages, each a mapping with `role` and `content` (or `from` and `value`).
        text: The conversation as `render_chat` renders it.
        pattern: A regular expression for the tokenizer's special tokens.
        tokenizer: Supplies the special tokens that the template writes.
        template: A Jinja template; None for the tokenizer's own.

    Raises:
        DataError: The template renders the rest of the conversation differently with placeholders.
    """
    chat = check_messages(messages)
    masked = mask(chat, re.compile(pattern))
    if masked == chat:
        return []
    other, _ = render(masked, tokenizer, template_of(tokenizer, template))
    spans = [match.span() for match in re.finditer(f"{MASK}+", other)]
    borders = [0, *itertools.chain(*spans), len(other)]
    between = zip(borders[::2], borders[1::2], strict=True)
    if len(other) != len(text) or any(text[begin:end] != other[begin:end] for begin, end in between):
        raise DataError(
            "the chat template depends on special tokens in the text of messages, so they cannot be read as text: set "
            "special_tokens to token, or choose another chat_template"
        )
    return spans


def mask(value: Any, pattern: re.Pattern[str]) -> Any:
    """Replace each character of every match in a value's texts by `MASK`, also in lists and mappings within it.

    Args:
        value: A text, or nested lists and mappings of texts.
        pattern: A regular expression for the tokenizer's special tokens.
    """
    if isinstance(value, str):
        return pattern.sub(lambda match: MASK * len(match[0]), value)
    if isinstance(value, Mapping):
        return {name: mask(one, pattern) for name, one in value.items()}
    return [mask(one, pattern) for one in value] if isinstance(value, list) else value


def added_by(chat: list[Message], number: int, text: str, tokenizer: PreTrainedTokenizerBase, template: str) -> Span:
    """Return first and end character of an assistant's answer in a rendered conversation, for chat templates that mark
    no answers.

    Args:
        chat: The conversation's messages, already checked.
        number: Index of the answer's message, from 0.
        text: The whole conversation, rendered with `template`.
        tokenizer: Supplies the special tokens that the template writes.
        template: The chat template (Jinja).

    Raises:
        DataError: The template renders the messages before the answer differently when the later ones are missing.
    """
    before, _ = render(chat[:number], tokenizer, template, add_generation_prompt=True)
    if not text.startswith(before):
        raise DataError(
            f"message {number + 1}: the chat template renders the messages before this answer differently without "
            "the later ones, so the answer cannot be found in the text: mark answers in the template with "
            "{% generation %}"
        )
    after, _ = render(chat[: number + 1], tokenizer, template)
    if not text.startswith(after):
        return len(before), end_of(chat, number, text, tokenizer, template)
    ended = after.rstrip()
    at_token = len(ended) > len(before) and ended.endswith(tuple(tokenizer.get_added_vocab()))
    return len(before), len(ended if at_token else after)


def end_of(chat: list[Message], number: int, text: str, tokenizer: PreTrainedTokenizerBase, template: str) -> int:
    """Return the end character of an answer that a chat template renders differently as the last message than in the
    middle.

    To find the end, the conversation is rendered once more with other words in place of the answer: what follows the
    answer is the same in both texts. A special token right behind the answer, which ends the turn, counts as part of
    the answer.

    Args:
        chat: The conversation's messages, already checked.
        number: Index of the answer's message, from 0.
        text: The whole conversation, rendered with `template`.
        tokenizer: Supplies the special tokens that the template writes.
        template: The chat template (Jinja).

    Raises:
        DataError: The text behind the answer depends on the answer.
    """
    others = [*chat[:number], chat[number] | {"content": STAND_IN}, *chat[number + 1 :]]
    _, found, behind = render(others, tokenizer, template)[0].partition(STAND_IN)
    if not found or STAND_IN in behind or not text.endswith(behind):
        raise DataError(
            f"message {number + 1}: the text that the chat template writes behind this answer depends on the answer, "
            "so its end cannot be found: mark answers in the template with {% generation %}"
        )
    token = next((token for token in tokenizer.get_added_vocab() if behind.startswith(token)), "")
    return len(text) - len(behind) + len(token)


def words_of(message: Message) -> list[tuple[str, str]]:
    """Return the texts that must occur in a rendered message: pairs of a description (for errors) and the text.

    Thoughts (`<think>`) and surrounding blanks may be left out; results of tools may be rendered as JSON, so they are
    not returned.

    Args:
        message: A message with `role` and `content`.
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
    """Render messages with a chat template; return the text and the character spans that the template marks as answers.

    Args:
        chat: The conversation's messages, already checked.
        tokenizer: Supplies the special tokens that the template writes.
        template: The chat template (Jinja).
        options: Options of transformers' `render_jinja_template`; without `return_assistant_tokens_mask=True` the list
            of spans is empty.

    Raises:
        DataError: The template raises an error.
    """
    try:
        texts, spans = render_jinja_template([chat], chat_template=template, **tokenizer.special_tokens_map, **options)
    except Exception as error:  # a template is a program: it can fail in any way, and refuses by an exception
        raise DataError(
            f"the chat template refuses the conversation: {first_line(error)}; choose another chat_template"
        ) from None
    return texts[0], spans[0] if spans else []


def check_messages(messages: object) -> list[Message]:
    """Return a conversation's messages with the roles that chat templates know, without fields that are None.

    Args:
        messages: A list of mappings with `role` and `content` (or `from` and `value`).

    Raises:
        DataError: `messages` is not a non-empty list, has no answer or begins with one, or a message has an unknown
            role or no text.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise DataError(f"messages must be a list of at least one message, not {messages!r:.80}")
    chat = [check_message(message, number) for number, message in enumerate(messages, start=1)]
    if all(message["role"] != "assistant" for message in chat):
        raise DataError(
            f"messages has no answer: the roles are {', '.join(one['role'] for one in chat)}, and one must be assistant"
        )
    if chat[0]["role"] == "assistant":
        raise DataError("message 1 has the role assistant: begin with a message of role user")
    return chat


def check_message(message: object, number: int) -> Message:
    """Return a message of a conversation as a mapping with `role` and `content`, without fields that are None.

    Args:
        message: A mapping with `role` and `content`, or with `from` and `value`.
        number: Position of the message in its conversation, from 1, for errors.

    Raises:
        DataError: `message` is not a mapping, its role is unknown, or it has no text.
    """
    if not isinstance(message, Mapping):
        raise DataError(f"message {number} must be a mapping with role and content, not {message!r:.80}")
    chosen = {name: value for name, value in message.items() if value is not None}
    if "role" not in chosen and "from" in chosen:
        sender = chosen.pop("from")
        chosen |= {"role": OTHER_NAMES.get(sender, sender), "content": chosen.pop("value", None)}
    role, content = chosen.get("role"), chosen.get("content")
    if role not in ROLES:
        raise DataError(f"message {number} has the role {role!r}; use one of {', '.join(ROLES)}")
    if content is None and chosen.get("tool_calls"):
        return chosen
    if not isinstance(content, str):
        raise DataError(f"message {number} of role {role} needs text in content, not {content!r:.80}")
    if role == "assistant" and not content.strip() and not chosen.get("tool_calls"):
        raise DataError(f"message {number} of role assistant is empty: give it text, or leave the conversation out")
    return chosen


def end_of_answers(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the id of the special token that ends an answer in the tokenizer's chat template; None if none does."""
    try:
        text, spans = render_chat([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], tokenizer)
    except DataError:
        return None
    ids = tokenizer(text[slice(*spans[-1])].rstrip(), add_special_tokens=False).input_ids
    return ids[-1] if ids and ids[-1] in tokenizer.get_added_vocab().values() else None
