"""Common parts of a run's evaluations, on held-out documents and on generated documents."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hmt_ds.config.recipe import Recipe
from hmt_ds.data import Batch
from hmt_ds.memory import Window
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
