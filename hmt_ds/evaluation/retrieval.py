"""Measure retrieval from memory: how often questions about facts in earlier segments are answered right."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hmt_ds.distributed.process_group import all_reduce_sum
from hmt_ds.evaluation.answers import counting_misses
from hmt_ds.evaluation.bootstrap import Interval, mean_intervals
from hmt_ds.evaluation.files import finite
from hmt_ds.memory import SegmentOutput, Window
from hmt_ds.memory.settings import Mode
from hmt_ds.parallel.protocols import Reader

ASKED, RIGHT, FOUND = range(3)  # columns of counts


@dataclass(frozen=True)
class RetrievalRow:
    """Retrieval results on generated documents of one length; fractions (0 to 1) have 95% intervals over documents.

    Attributes:
        segments: number of segments of each document.
        documents: number of documents.
        questions: number of questions that were asked.
        right: fraction of questions whose answer has the largest logit at each of its tokens.
        found: fraction of questions for which the memory of the segment that tells the fact has the largest retrieval
            weight; None in modes without retrieval.
    """

    segments: int
    documents: int
    questions: int
    right: Interval
    found: Interval | None


@dataclass(frozen=True)
class RecallMap:
    """The retrieval weights of one document: how much each segment reads of every earlier segment's memory.

    Attributes:
        weights: `[segments, segments]` float32; row n has the weights of earlier segments' memories when segment n is
            read.
        told: `[segments]` int64, for each segment the index of the segment whose memory answers its question; -1
            without a question.
    """

    weights: np.ndarray
    told: np.ndarray


def count_answers(
    reader: Reader, windows: Iterable[tuple[Window, Tensor]], total: int
) -> tuple[np.ndarray, RecallMap | None]:
    """Read generated documents and count right answers, together on all ranks; each rank calls it with its own rows.

    Args:
        reader: the model in DeepSpeed's engine, or on a pipeline.
        windows: consecutive segments of this rank's rows, with retrieval targets, and the index of each row's document
            `[rows]`, -1 for an empty row; equally many on each rank.
        total: number of documents of all ranks.

    Returns:
        Counts of each document over all ranks, `[total, 3]`: questions, right answers, memories found. And the
        retrieval weights of this rank's first document; None if this rank has no document, or computes no losses.
    """
    counts = torch.zeros(total, 3, dtype=torch.float64, device=reader.device)
    recalls: RecallMap | None = None
    for window, documents in windows:
        assert window.targets is not None
        targets, shown = window.targets.to(reader.device), list[Tensor]()
        with counting_misses(reader):
            for n, (output, _) in enumerate(reader.read(window, None)):
                if reader.reports:
                    score = score_segment(output, targets[:, n])
                    counts.index_add_(0, documents.clamp(min=0).to(reader.device), score.double())
                    shown.append(output.recall[0].cpu())
        if recalls is None and shown:
            recalls = recall_map(shown, window.targets[0])
    return all_reduce_sum(counts).cpu().numpy(), recalls


def score_segment(output: SegmentOutput, targets: Tensor) -> Tensor:
    """Count questions, right answers and found memories in one segment of each row.

    Args:
        output: the segment's output, whose losses `[rows]` are numbers of wrong tokens of the answer.
        targets: `[rows]` int64, how many memories back the fact is; 0 without a question.

    Returns:
        0 or 1 for each row and each of questions, right answers and found memories, `[rows, 3]`.
    """
    right = output.loss == 0
    asked, cached = targets > 0, output.recall.shape[1]
    found = output.recall.argmax(dim=1) == cached - targets if cached else torch.zeros_like(right)
    return torch.stack([asked, asked & right, asked & found], dim=1)


def recall_map(shown: list[Tensor], targets: Tensor) -> RecallMap:
    """Arrange the retrieval weights of a document by the segment that each memory belongs to.

    Args:
        shown: for each segment of a document its retrieval weights, `[cached memories]`, newest memory last.
        targets: `[segments]` int64, how many memories back is the one that each segment should retrieve; 0 for none.
    """
    segments = len(shown)
    weights = np.zeros((segments, segments), dtype=np.float32)
    for n, share in enumerate(shown):
        kept = min(n, len(share))  # on pipelines there are places for memories that are not written yet, in front
        weights[n, n - kept : n] = share[len(share) - kept :].float().numpy()
    back = targets.numpy()
    return RecallMap(weights, np.where(back > 0, np.arange(segments) - back, -1))


def row_of(counts: np.ndarray, segments: int, mode: Mode) -> RetrievalRow:
    """Summarize the retrieval results on documents of one length.

    Args:
        counts: numbers of questions, right answers and memories found of each document, `[documents, 3]`.
        segments: segments of each document.
        mode: memory mode: ``hmt``, ``rmt`` or ``backbone``; only ``hmt`` retrieves.
    """
    right, found = mean_intervals(counts[:, [RIGHT, FOUND]], counts[:, [ASKED, ASKED]])
    return RetrievalRow(segments, len(counts), int(counts[:, ASKED].sum()), right, found if mode == "hmt" else None)


def write_retrieval(file: Path, step: int, data: dict[str, object], chance: float, rows: list[RetrievalRow]) -> None:
    """Write retrieval results as JSON; the file appears only when it is complete.

    Args:
        file: the file to write.
        step: optimizer step of the model's weights.
        data: description of the generated documents.
        chance: fraction (0 to 1) of right answers of a model that guesses.
        rows: results, one for each length of documents.

    Raises:
        OSError: the file cannot be written.
    """
    content = {"step": step, "data": data, "chance": chance, "rows": [as_json(row) for row in rows]}
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(".part")
    aside.write_text(json.dumps(content, indent=1))
    aside.replace(file)


def as_json(row: RetrievalRow) -> dict[str, object]:
    """Convert retrieval results to JSON values by name; a fraction becomes a list of mean, low and high end.

    Args:
        row: results on documents of one length.
    """
    shares = {name: value for name, value in asdict(row).items() if isinstance(value, list | tuple)}
    return asdict(row) | {name: [finite(value) for value in share] for name, share in shares.items()}
