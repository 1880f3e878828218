"""`DataError`, the exception for everything that a user can get wrong about data, and `RowError`, of a document."""


class DataError(ValueError):
    """A data source, tokenizer or saved position cannot be used; the message says why and what to do, in one line."""


class RowError(DataError):
    """A document cannot be used.

    Attributes:
        row: Its number, from 0; `RowPlaces` finds its file and line.
        reason: What is wrong with it.
    """

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(row, reason)  # what a process that tokenizes sends of it
        self.row, self.reason = row, reason

    def __str__(self) -> str:
        return f"document {self.row} (the first is 0): {self.reason}"


def first_line(error: BaseException) -> str:
    """Return the first line of a library's error message, or its type's name where the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
