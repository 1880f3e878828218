"""Evaluate a run's retrieval from memory on generated documents; print the results and write them to the
run's folder."""

import hashlib
import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from torch import Tensor

from hmt_ds.data import RetrievalDocuments, RetrievalLoader
from hmt_ds.distributed.process_group import rank
from hmt_ds.evaluation.files import evaluation_file
from hmt_ds.evaluation.retrieval import RecallMap, RetrievalRow, count_answers, row_of, write_retrieval
from hmt_ds.memory import Window
from hmt_ds.reporting.evaluation_tables import WIDTH
from hmt_ds.reporting.log import log_seconds
from hmt_ds.training.evaluation_in_run import EvaluationInRun, as_window, warn_if_unwritable

logger = logging.getLogger(__name__)

SEED = 0  # of the documents: runs with different seeds are asked the same questions
DOCUMENTS = 64


class RetrievalValidation(EvaluationInRun):
    """Evaluates retrieval from memory on generated documents, about things that no training document names."""

    @property
    def total(self) -> int:
        """Number of generated documents that are read for each length in segments."""
        return self.recipe.evaluation.documents or DOCUMENTS

    def evaluate(self, step: int, *, in_passing: bool = False) -> dict[str, float]:
        """Ask the model the questions of generated documents; print and store the fraction of right answers.

        All ranks must call it.

        Args:
            step: optimizer step of the weights.
            in_passing: read only the shortest documents, as during training.

        Returns:
            ``evaluation/retrieval/N``, the fraction of right answers for documents of N segments; only on rank 0, and
            nothing if the recipe has no ``data.retrieval``.
        """
        lengths = self.recipe.retrieval_segments
        if not lengths:
            return {}
        rows, recalls = list[RetrievalRow](), None
        with log_seconds(logger, "evaluating retrieval"):
            for segments in lengths[:1] if in_passing else lengths:
                counts, recalls = count_answers(self.reader, self.documents(segments), self.total)
                rows.append(row_of(counts, segments, self.recipe.memory.mode))
        if rank() == 0:
            self.report(step, rows, recalls if self.recipe.memory.mode == "hmt" else None)
        return {f"evaluation/retrieval/{row.segments}": row.right[0] for row in rows} if rank() == 0 else {}

    def documents(self, segments: int) -> Iterator[tuple[Window, Tensor]]:
        """Yield this rank's batches of generated documents.

        Args:
            segments: number of segments of each document.

        Yields:
            The segments of some documents, one document per row, and the index of each row's document ``[rows]``; -1
            for an empty row.
        """
        settings = self.recipe.data.retrieval
        assert settings is not None and self.prepared.retrieval is not None
        length = self.recipe.memory.segment_length
        for batch in RetrievalLoader(
            RetrievalDocuments(self.prepared.retrieval, settings, segment_length=length, seed=SEED, held_out=True),
            segments=lambda _: segments,
            rank=self.reader.data_rank,
            world_size=self.reader.data_ranks,
            batch_size=self.recipe.evaluation.batch_size or self.recipe.training.batch_size,
            total=self.total,
        ):
            self.before_window()
            yield as_window(batch), batch.documents[:, 0]

    def report(self, step: int, rows: list[RetrievalRow], recalls: RecallMap | None) -> None:
        """Print the table of right answers to questions, and write results and a picture into the run's folder.

        Args:
            step: optimizer step of the weights.
            rows: results for each document length.
            recalls: retrieval weights of one document, for the picture; None if the model retrieves nothing.
        """
        from hmt_ds.reporting.retrieval import plot_retrieval, retrieval_table  # imports matplotlib

        settings = self.recipe.data.retrieval
        assert settings is not None
        chance = 1 / settings.values
        title = f"retrieval after step {step}: {settings.kind}, things that training never named"
        Console(width=None if sys.stdout.isatty() else WIDTH).print(retrieval_table(rows, title, chance))
        data = self.data()
        folder = Path(self.recipe.training.output) / "evaluation"
        file = evaluation_file(folder, step, str(data["sha256"]), own=self.own_data, prefix="retrieval_")
        with warn_if_unwritable(file):
            write_retrieval(file, step, data, chance, rows)
            plot_retrieval(rows, chance, recalls, file.with_suffix(".png"))
            print(f"retrieval   {file} and .png", flush=True)

    def data(self) -> dict[str, object]:
        """Description of the generated documents, stored with the results: settings by name, and a SHA-256 of their
        content."""
        settings = self.recipe.data.retrieval
        assert settings is not None
        read = {"documents": self.total, "tokenizer": self.prepared.tokenizer, **asdict(settings)}
        read["segment_length"] = self.recipe.memory.segment_length
        return {"sha256": hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest(), **read}
