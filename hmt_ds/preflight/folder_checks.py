"""Check the folders that a recipe writes to. Imports no torch, so that `hmt-ds launch` reports mistakes at once."""

from pathlib import Path

from hmt_ds.checkpoint.run_lock import held_here
from hmt_ds.config.recipe import Recipe
from hmt_ds.config.value_checks import why_no_folder


def check_folders(recipe: Recipe) -> list[str]:
    """Return an error line for each folder that a recipe writes to and that cannot be created.

    Args:
        recipe: the recipe.
    """
    named = {"training.output": recipe.training.output, "data.cache_dir": recipe.data.cache_dir}
    return [f"{key}: {reason}" for key, path in named.items() if (reason := why_no_folder(Path(path)))]


def check_output(recipe: Recipe) -> list[str]:
    """Return an error line if ``training.output`` cannot be trained into; else an empty list.

    Another process may train there, or the folder may hold a run that the recipe does not resume.

    Args:
        recipe: the recipe.
    """
    problem = held_here(Path(recipe.training.output))
    return [problem] if problem else check_no_run(recipe)


def check_no_run(recipe: Recipe) -> list[str]:
    """Return an error line if ``training.output`` holds a run and ``checkpoint.resume`` is not auto; else an empty
    list.

    Args:
        recipe: the recipe.
    """
    folder = Path(recipe.training.output)
    files = ("recipe.yaml", "metrics.jsonl", "checkpoints")  # the folder may hold an evaluation of the starting weights
    if recipe.checkpoint.resume == "never" and any((folder / name).exists() for name in files):
        return [
            f"training.output: {folder} holds a run already: name another folder, or resume the run with "
            "--checkpoint.resume auto"
        ]
    return []
