"""`DataError`, the exception for everything that a user can get wrong about data."""


class DataError(ValueError):
    """A data source, tokenizer or saved position cannot be used; the message says why and what to do, in one line."""


def first_line(error: BaseException) -> str:
    """Return the first line of a library's error message, or its type's name where the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
