"""Held-out perplexity of a run: computed, printed, and written into the run's folder."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from hmt_ds.config.recipe import Recipe
from hmt_ds.data import Batch, WindowLoader
from hmt_ds.distributed.process_group import rank
from hmt_ds.evaluation.perplexity import PerplexityRow, as_dicts, perplexity_by_segments
from hmt_ds.memory import Window
from hmt_ds.parallel.protocols import Reader
from hmt_ds.preflight.prepare import Prepared
from hmt_ds.reporting.log import log_seconds
from hmt_ds.reporting.plots import plot_perplexity
from hmt_ds.reporting.tables import perplexity_table

logger = logging.getLogger(__name__)


class Validation:
    """Evaluates a model on the held-out documents of its recipe.

    Args:
        recipe: checked.
        prepared: the result of the preflight checks.
        reader: the model.
        before_window: called before each window; what it raises ends the evaluation.
    """

    def __init__(self, recipe: Recipe, prepared: Prepared, reader: Reader, before_window: Callable[[], None]):
        self.recipe, self.prepared, self.reader = recipe, prepared, reader
        self.before_window = before_window

    def evaluate(self, step: int) -> list[PerplexityRow] | None:
        """Compute the perplexity after a step, print the table and write it; None without held-out documents."""
        if self.prepared.validation is None:
            return None
        with log_seconds(logger, "evaluating"):
            rows = perplexity_by_segments(self.reader, self.windows, self.recipe.evaluation.segments_read)
        if rank() == 0:
            Console().print(perplexity_table(rows, f"held-out perplexity after step {step}"))
            file = Path(self.recipe.training.output) / "evaluation" / f"step_{step:06d}.json"
            with warn_if_unwritable(file):
                file.parent.mkdir(parents=True, exist_ok=True)
                aside = file.with_suffix(".part")
                aside.write_text(json.dumps({"step": step, "rows": as_dicts(rows)}, indent=1))
                aside.replace(file)
                plot_perplexity(rows, file.with_suffix(".png"))
                print(f"evaluation  {file} and .png", flush=True)
        return rows

    def windows(self) -> Iterable[Window]:
        """This rank's rows of the held-out documents, once through."""
        assert self.prepared.validation is not None
        for batch in WindowLoader(
            self.prepared.validation,
            segments=self.recipe.depths.largest,
            segment_length=self.recipe.memory.segment_length,
            seed=0,
            shuffle=False,
            epochs=1,
            rank=self.reader.data_rank,
            world_size=self.reader.data_ranks,
            batch_size=self.recipe.evaluation.batch_size or self.recipe.training.batch_size,
        ):
            self.before_window()
            yield as_window(batch)


@contextmanager
def warn_if_unwritable(file: Path) -> Iterator[None]:
    """Turn a failure to write a file that the run can do without into a warning."""
    try:
        yield
    except OSError as error:
        logger.warning("%s cannot be written: %s", file, error.strerror)


def as_window(batch: Batch) -> Window:
    """The part of a batch that the model reads."""
    return Window(batch.input_ids, batch.labels, batch.lengths, batch.starts, targets=batch.targets)
