"""Names and settings of documents: formats, well-known data sets, tasks, ``data.retrieval``. Imports no torch."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["keys", "passkey", "overwritten"]
FormatName = Literal["text", "completion", "messages", "questions"]
SpecialTokens = Literal["text", "token"]
TaskName = Literal["passkey", "babilong-qa1", "babilong-qa2", "babilong-qa3", "babilong-qa4", "babilong-qa5"]

COLUMNS: dict[FormatName, tuple[str, ...]] = {
    "text": ("text",),
    "completion": ("prompt", "completion"),
    "messages": ("messages",),
    "questions": ("context", "input", "answers"),
}
"""Names of the columns that the rows of each format have."""


DatasetName = Literal[
    "wikitext-103",
    "pg19",
    "redpajama-v2",
    "pubmedqa-long",
    "pubmedqa-short",
    "musique",
    "qmsum",
    "narrativeqa",
    "qasper",
    "longbench",
    "chatqa2-long-sft",
    "babilong",
]


@dataclass(frozen=True)
class NamedDataset:
    """Columns and format of a well-known data set, such as Qasper.

    Attributes:
        hub: The data set's name on the hub, with its configuration if it has several; or where else to get it.
        columns: Names of the columns that are read.
        format: Format that its rows are converted to: `text`, `completion`, `messages` or `questions`.
    """

    hub: str
    columns: tuple[str, ...]
    format: FormatName = "questions"


PUBMEDQA = ("question", "context", "long_answer", "final_decision")
NAMED: dict[DatasetName, NamedDataset] = {
    "wikitext-103": NamedDataset("Salesforce/wikitext (wikitext-103-raw-v1)", ("text",), "text"),
    "pg19": NamedDataset("deepmind/pg19", ("text",), "text"),
    "redpajama-v2": NamedDataset("togethercomputer/RedPajama-Data-V2", ("raw_content",), "text"),
    "pubmedqa-long": NamedDataset("qiaojin/PubMedQA (pqa_labeled, pqa_artificial)", PUBMEDQA),
    "pubmedqa-short": NamedDataset("qiaojin/PubMedQA (pqa_labeled, pqa_artificial)", PUBMEDQA),
    "musique": NamedDataset("dgslibisey/MuSiQue", ("paragraphs", "question", "answer")),
    "qmsum": NamedDataset(
        "the .jsonl files of its authors", ("meeting_transcripts", "general_query_list", "specific_query_list")
    ),
    "narrativeqa": NamedDataset("deepmind/narrativeqa", ("document", "question", "answers")),
    "qasper": NamedDataset("allenai/qasper", ("title", "abstract", "full_text", "qas")),
    "longbench": NamedDataset("THUDM/LongBench (one of its tasks)", ("context", "input", "answers")),
    "chatqa2-long-sft": NamedDataset(
        "nvidia/ChatQA2-Long-SFT-data (long_sft, NarrativeQA_131072)", ("document", "messages", "answers"), "messages"
    ),
    "babilong": NamedDataset("RMT-team/babilong (a length; a split is a task)", ("input", "question", "target")),
}


@dataclass(frozen=True)
class RetrievalSettings:
    """Generated documents that state facts and ask for them in later segments, to be used in place of data.train.

    A document has training.bptt_depth segments; only the tokens of the answers count in the loss.
    """

    kind: Kind = "keys"
    """Kind of documents. keys: each segment tells where a new thing is and asks for an earlier one; passkey: one fact
    per document, asked for at its end; overwritten: things are moved, and the newest place counts."""
    keys: int = 4096
    """Number of different things that documents can name, each an adjective and a noun; 2 to 4,096."""
    values: int = 24
    """Number of places where a thing can be, 2 to 64; guessing is right in one of this many cases."""
    held_out: float = 0.25
    """Fraction (above 0, below 1) of the things that only evaluation documents name, and training documents never do.
    """
