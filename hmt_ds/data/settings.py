"""Settings of documents: formats, and the recipe's section ``data.retrieval``. Imports no torch."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["keys", "passkey", "overwritten"]
FormatName = Literal["text", "completion", "messages", "questions"]

COLUMNS: dict[FormatName, tuple[str, ...]] = {
    "text": ("text",),
    "completion": ("prompt", "completion"),
    "messages": ("messages",),
    "questions": ("context", "input", "answers"),
}
"""The columns of each format's rows."""


@dataclass(frozen=True)
class RetrievalSettings:
    """Generated documents that tell facts and ask for them in later segments, in place of data.train. A document has
    training.bptt_depth segments; only the tokens of the answers count in the loss."""

    kind: Kind = "keys"
    """keys: each segment tells where a new thing is, and asks for an earlier one; passkey: one fact per document, asked
    for at its end; overwritten: things are moved, and the newest place counts."""
    keys: int = 4096
    """Number of things, each named by an adjective and a noun."""
    values: int = 24
    """Number of places where a thing can be. A guess is right once in this many times."""
    held_out: float = 0.25
    """Fraction of the things that training documents never name. Evaluation documents name only these."""
