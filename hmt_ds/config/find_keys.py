"""Find keys of a recipe by words in their names and help texts, for ``hmt-ds keys WORD``."""

import difflib
from collections.abc import Sequence

from pydantic.fields import FieldInfo

from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.sections import keys


def keys_with(words: Sequence[str], kind: object) -> list[tuple[str, FieldInfo]]:
    """Return the keys of a section whose name or help text contains every word, ignoring case.

    Args:
        words: texts to look for; if empty, every key is returned.
        kind: the section's class, such as ``Recipe``.

    Returns:
        Dotted name and pydantic field of each key.

    Raises:
        ConfigError: no key contains all words.
    """
    listed = [(name, field, f"{name} {field.description or ''}".lower()) for name, field in keys(kind)]
    found = [(name, field) for name, field, text in listed if all(word.lower() in text for word in words)]
    if found:
        return found
    near = difflib.get_close_matches(words[-1].lower(), {part for name, *_ in listed for part in name.split(".")}, 1)
    hint = f"did you mean {near[0]!r}?" if near else "hmt-ds keys lists all"
    raise ConfigError([f"no key's name or help text contains {' and '.join(map(repr, words))}: {hint}"])
