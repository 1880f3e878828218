"""What evaluations of a run have in common, on held-out documents and on generated ones."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from torch import Tensor

from hmt_ds.config.recipe import Recipe
from hmt_ds.data import Batch, WindowLoader
from hmt_ds.memory import Window
from hmt_ds.memory.boundaries import Instead
from hmt_ds.parallel.protocols import Reader
from hmt_ds.preflight.prepare import Prepared

logger = logging.getLogger(__name__)


@dataclass
class EvaluationInRun:
    """Base class of evaluations of a model in its engine, during or after training.

    Attributes:
        recipe: the checked recipe.
        prepared: data from the preflight checks.
        reader: the model in its engine.
        before_window: called before each batch of segments is read; an exception that it raises ends the evaluation.
        own_data: whether the documents are those that the run's own recipe names; results on others get another file
            name.
    """

    recipe: Recipe
    prepared: Prepared
    reader: Reader
    before_window: Callable[[], None]
    own_data: bool = True

    @property
    def every(self) -> int | None:
        """Number of optimizer steps between two evaluations; None to evaluate only at the end of training."""
        return self.recipe.evaluation.every

    @property
    def rows(self) -> int:
        """Number of documents that each rank reads side by side."""
        return self.recipe.evaluation.batch_size or self.recipe.training.batch_size

    @property
    def instead(self) -> list[Instead]:
        """The memories that replace a document's own for comparison: ``swapped`` (another document's) and ``none``."""
        if self.recipe.memory.mode == "backbone":
            return []
        return ["swapped", "none"] if self.rows > 1 else ["none"]

    def evaluate(self, step: int, *, in_passing: bool = False) -> dict[str, float]:
        """Evaluate, print and store the results; return numbers to log as metrics, by name. All ranks must call it.

        Args:
            step: optimizer step of the weights.
            in_passing: evaluate less, as during training, instead of everything.
        """
        raise NotImplementedError

    def windows(self, tokens: Dataset) -> Iterable[tuple[Window, Tensor]]:
        """Yield windows of this rank's rows of tokenized documents, once and in their order.

        Args:
            tokens: the documents, from ``tokenize_documents``.

        Yields:
            A window, and the index of each segment's document ``[rows, segments]``; -1 for an empty one.
        """
        for batch in WindowLoader(
            tokens,
            segments=self.recipe.depths.largest,
            segment_length=self.recipe.memory.segment_length,
            seed=0,
            shuffle=False,
            epochs=1,
            rank=self.reader.data_rank,
            world_size=self.reader.data_ranks,
            batch_size=self.rows,
        ):
            self.before_window()
            yield as_window(batch), batch.documents


@contextmanager
def warn_if_unwritable(file: Path) -> Iterator[None]:
    """Turn an OSError in the ``with`` block into a warning in the log, so that a full disk does not end the run.

    Args:
        file: the file that the block writes.
    """
    try:
        yield
    except OSError as error:
        logger.warning("%s cannot be written: %s", file, error.strerror)


def as_window(batch: Batch) -> Window:
    """Return the tensors of a batch that the model reads (token ids, labels, lengths, ...) as a `Window` of segments.

    Args:
        batch: a batch from a data loader.
    """
    optional = {"targets": batch.targets, "weights": batch.weights, "parts": batch.parts}
    return Window(batch.input_ids, batch.labels, batch.lengths, batch.starts, **optional)
