"""Evaluate a run's losses on held-out documents; print the results and write them to the run's folder."""

import logging
import sys
from pathlib import Path

from rich.console import Console

from hmt_ds.data import document_lengths, tokens_sha256
from hmt_ds.distributed.process_group import rank
from hmt_ds.evaluation.figures import segments_needed
from hmt_ds.evaluation.files import Evaluation, HeldOutData, evaluation_file, write_evaluation
from hmt_ds.evaluation.read_documents import document_losses
from hmt_ds.reporting.counted import counted
from hmt_ds.reporting.evaluation_tables import WIDTH, evaluation_table
from hmt_ds.reporting.log import log_seconds
from hmt_ds.training.evaluation_in_run import EvaluationInRun, warn_if_unwritable

logger = logging.getLogger(__name__)


class Validation(EvaluationInRun):
    """Evaluates a model's loss on the held-out documents of ``data.validation``."""

    def evaluate(self, step: int, *, in_passing: bool = False) -> dict[str, float]:
        """Compute the loss of held-out documents, print it as a table, and write it to the run's folder.

        Does nothing if the recipe has no data.validation. All ranks must call it.

        Args:
            step: optimizer step of the weights.
            in_passing: measure only the loss with each document's own memories, as during training; otherwise also with
                another document's memories and without any, which takes three times as long.

        Returns:
            ``evaluation/loss``, nats per token with the own memories; only on rank 0.
        """
        documents = self.prepared.validation
        if documents is None:
            return {}
        segments_read, instead = self.recipe.evaluation.segments_read, [] if in_passing else self.instead
        with log_seconds(logger, "evaluating"):
            depth = segments_needed(segments_read)
            losses = document_losses(self.reader, self.windows(documents), len(documents), depth, instead)
        if rank() != 0:
            return {}
        evaluation = Evaluation(step, self.data(), segments_read, losses)
        self.show(evaluation)
        if instead and "swapped" not in losses.losses and len(documents) > 1:  # of one document the verdict says so
            needed = "it takes two rows of a batch that are within documents at a time"
            print(f"another document's memories were not read: {needed} (evaluation.batch_size is {self.rows})")
        self.write(evaluation)
        return {"evaluation/loss": float(losses.losses["own"].sum() / losses.tokens["own"].sum())}

    def data(self) -> HeldOutData:
        """Description of the held-out documents, stored with an evaluation's results.

        It has source, SHA-256 of the token ids, numbers of documents and tokens, and tokenizer.
        """
        assert self.prepared.validation is not None
        tokens = self.prepared.validation
        lengths = document_lengths(tokens)
        return HeldOutData(
            source=", ".join(source.source for source in self.recipe.data.sources("validation").values()),
            sha256=tokens_sha256(tokens),
            documents=len(lengths),
            tokens=int(lengths.sum()),
            tokenizer=self.prepared.tokenizer or "",
        )

    def show(self, evaluation: Evaluation) -> None:
        """Print the table of an evaluation's held-out losses, and the verdict on whether the memory helps.

        Args:
            evaluation: the results.
        """
        data, figures = evaluation.data, evaluation.figures
        title = f"held-out loss after step {evaluation.step}, by segments read before, with 95% intervals over "
        title += f"{counted(data.documents, 'document')} of {Path(data.source).name}"
        console = Console(width=None if sys.stdout.isatty() else WIDTH)
        console.print(evaluation_table(figures.rows, figures.positions, title))
        memory = self.recipe.memory
        if memory.summarises and memory.interface == "paper":
            read_by = "the recall of memory.interface paper has read them"
            print(f"positions below {memory.summary_length} are not scored causally: {read_by}")
        if figures.verdict:
            print(figures.verdict)

    def write(self, evaluation: Evaluation) -> None:
        """Write the results of an evaluation (.json, .npz) and a plot (.png) into the run's folder.

        Args:
            evaluation: the results.
        """
        from hmt_ds.reporting.plots import plot_evaluation  # imports matplotlib

        folder = Path(self.recipe.training.output) / "evaluation"
        file = evaluation_file(folder, evaluation.step, evaluation.data.sha256, own=self.own_data)
        with warn_if_unwritable(file):
            write_evaluation(evaluation, file)
            plot_evaluation(evaluation.figures.rows, evaluation.figures.positions, file.with_suffix(".png"))
            print(f"evaluation  {file}, .npz and .png", flush=True)
