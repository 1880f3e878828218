"""A run's evaluation: held-out perplexity, printed and kept with the run."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from tqdm import tqdm

from hmt_ds.config.recipe import Recipe
from hmt_ds.data import Batch, WindowLoader
from hmt_ds.distributed.process_group import rank
from hmt_ds.evaluation.perplexity import PerplexityRow, as_dicts, perplexity_by_segments
from hmt_ds.memory import Window
from hmt_ds.parallel.zero import ZeroExecutor
from hmt_ds.preflight.prepare import Prepared
from hmt_ds.reporting.plots import plot_perplexity
from hmt_ds.reporting.tables import perplexity_table


class Validation:
    """Reads the held-out documents of a recipe with a run's weights.

    Args:
        recipe: checked.
        prepared: what the checks have read.
        executor: has the weights.
        before_window: called before each window; what it raises ends the evaluation.
    """

    def __init__(self, recipe: Recipe, prepared: Prepared, executor: ZeroExecutor, before_window: Callable[[], None]):
        self.recipe, self.prepared, self.executor = recipe, prepared, executor
        self.before_window = before_window

    def evaluate(self, step: int) -> list[PerplexityRow] | None:
        """Perplexity after a step; the table is printed, and kept with the run. None without held-out documents."""
        if self.prepared.validation is None:
            return None
        rows = perplexity_by_segments(self.executor, self.windows, self.recipe.evaluation.segments_read)
        if rank() == 0:
            Console().print(perplexity_table(rows, f"held-out perplexity after step {step}"))
            file = Path(self.recipe.training.output) / "evaluation" / f"step_{step:06d}.json"
            with warning(file):
                file.parent.mkdir(parents=True, exist_ok=True)
                aside = file.with_suffix(".part")
                aside.write_text(json.dumps({"step": step, "rows": as_dicts(rows)}, indent=1))
                aside.replace(file)
                plot_perplexity(rows, file.with_suffix(".png"))
                print(f"evaluation  {file} and .png", flush=True)
        return rows

    def windows(self) -> Iterable[Window]:
        """This rank's rows of the documents, once through."""
        assert self.prepared.validation is not None
        for batch in WindowLoader(
            self.prepared.validation,
            segments=self.recipe.training.bptt_depth,
            segment_length=self.recipe.memory.segment_length,
            seed=0,
            shuffle=False,
            epochs=1,
            rank=self.executor.data_rank,
            world_size=self.executor.data_ranks,
            batch_size=self.recipe.evaluation.batch_size or self.recipe.training.batch_size,
        ):
            self.before_window()
            yield as_window(batch)


@contextmanager
def warning(file: Path) -> Iterator[None]:
    """Around writing what a run can do without."""
    try:
        yield
    except OSError as error:
        tqdm.write(f"warning: {file} cannot be written: {error.strerror}", file=sys.stderr)


def as_window(batch: Batch) -> Window:
    """A batch as the memory reads it."""
    return Window(batch.input_ids, batch.labels, batch.lengths, batch.starts)
