"""Errors about data that are a user's mistake: `DataError`, and `RowError` for one document."""


class DataError(ValueError):
    """A data source, tokenizer or saved position cannot be used; the message says why and what to do, in one line."""


class NoDocumentsError(DataError):
    """Raised if a data source has no documents, or none is left after blank, unwanted, short and long ones are left
    out."""


class RowError(DataError):
    """Raised if one document cannot be used, such as a conversation without an answer.

    Attributes:
        row: Index of the document in its source, from 0; `RowPlaces` finds its file and line.
        reason: What is wrong with the document and what to do, without naming file and line.
    """

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(row, reason)  # what a process that tokenizes sends of it
        self.row, self.reason = row, reason

    def __str__(self) -> str:
        return f"document {self.row} (the first is 0): {self.reason}"


def first_line(error: BaseException) -> str:
    """Return the first line of a library's error message, up to 300 characters, or its type's name if it is empty."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
