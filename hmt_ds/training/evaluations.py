"""List all evaluations of a run: held-out losses, retrieval from memory, and question-answering tasks."""

from collections.abc import Callable

from hmt_ds.config.recipe import Recipe
from hmt_ds.parallel.protocols import Reader
from hmt_ds.preflight.prepare import Prepared
from hmt_ds.training.evaluation_in_run import EvaluationInRun
from hmt_ds.training.retrieval_validation import RetrievalValidation
from hmt_ds.training.task_validation import TaskValidation
from hmt_ds.training.validation import Validation


def evaluations(
    recipe: Recipe, prepared: Prepared, reader: Reader, before_window: Callable[[], None], *, own_data: bool = True
) -> list[EvaluationInRun]:
    """Return the evaluations of held-out losses, of retrieval and of tasks, in the order in which they run.

    Those that a recipe does not configure do nothing.

    Args:
        recipe: the checked recipe.
        prepared: data from the preflight checks.
        reader: the model in its engine.
        before_window: called before each batch of segments is read; an exception that it raises ends the evaluation.
        own_data: whether the documents are those that the run's own recipe names.
    """
    kinds = (Validation, RetrievalValidation, TaskValidation)
    return [kind(recipe, prepared, reader, before_window, own_data) for kind in kinds]
