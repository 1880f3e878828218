"""Turn documents into training batches: read sources, tokenize, order the segments, make tensors."""

from typing import TYPE_CHECKING

from hmt_ds import lazy_imports

if TYPE_CHECKING:
    from hmt_ds.data.batches import IGNORE_INDEX, Batch, WindowLoader
    from hmt_ds.data.describe import describe_tokens
    from hmt_ds.data.document_queue import MixBy, QueueState, SourceShare
    from hmt_ds.data.errors import DataError
    from hmt_ds.data.retrieval import RetrievalDocuments, RetrievalLoader, check_length
    from hmt_ds.data.retrieval_text import RetrievalText
    from hmt_ds.data.sources import SourceDocuments, load_documents, read_source
    from hmt_ds.data.tokenize import document_lengths, tokenize_documents, tokens_sha256
    from hmt_ds.data.tokenizers import check_vocabulary, describe_tokenizer, load_tokenizer
    from hmt_ds.data.train_tokenizer import train_on_lines, train_sentencepiece
    from hmt_ds.data.window_plan import Packing, Piece, PlannedWindow, WindowPlan, WindowPlanState
else:
    __getattr__ = lazy_imports(__file__)

__all__ = [
    "IGNORE_INDEX",
    "Batch",
    "DataError",
    "MixBy",
    "Packing",
    "Piece",
    "PlannedWindow",
    "QueueState",
    "RetrievalDocuments",
    "RetrievalLoader",
    "RetrievalText",
    "SourceDocuments",
    "SourceShare",
    "WindowLoader",
    "WindowPlan",
    "WindowPlanState",
    "check_length",
    "check_vocabulary",
    "describe_tokenizer",
    "describe_tokens",
    "document_lengths",
    "load_documents",
    "load_tokenizer",
    "read_source",
    "tokenize_documents",
    "tokens_sha256",
    "train_on_lines",
    "train_sentencepiece",
]
