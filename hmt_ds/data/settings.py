"""Settings of documents: formats, well-known data sets, and the section ``data.retrieval``. Imports no torch."""

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
    """The schema of a data set.

    Attributes:
        hub: Name of the data set on the hub, and of the configuration that this project has in mind, if it has several.
        columns: The columns that are read.
        format: The format that the rows become.
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
