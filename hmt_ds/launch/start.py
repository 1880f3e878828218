"""Start ``train``, ``evaluate`` or ``bench`` on this machine: check the recipe, then start the ranks."""

import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlparse

from pydantic.dataclasses import dataclass

from hmt_ds.benchmark.bench_options import BenchOptions
from hmt_ds.checkpoint.files import newest_state, run_of
from hmt_ds.config.config_error import ConfigError, collected
from hmt_ds.config.folder_recipe import CONFIG_FILE, recipe_file_of
from hmt_ds.config.load import NO_CONSENT, load_recipe
from hmt_ds.config.options import AtLeastOne, Options, words_of
from hmt_ds.config.recipe import Recipe
from hmt_ds.config.sections import STRICT
from hmt_ds.distributed.quick_imports import quick_imports
from hmt_ds.generation.options import GenerateOptions
from hmt_ds.launch.local import run_ranks
from hmt_ds.reporting.log import start_log

if TYPE_CHECKING:
    from hmt_ds.preflight.prepare import Prepared


@dataclass(frozen=True, config=STRICT)
class RankOptions(Options):
    """Options that `hmt-ds train`, `evaluate` and `bench` share; each field's docstring is its help text."""

    ranks: AtLeastOne | None = None
    """number of ranks to start on this machine (default: as many as wrote the run's newest checkpoint, else one per
    GPU, else 1; evaluate starts at most one per GPU or CPU core)"""


@dataclass(frozen=True, config=STRICT)
class TrainOptions(RankOptions):
    """Options of `hmt-ds train`; each field's docstring is its help text."""

    dry_run: bool = False
    """check recipe, model, data and machine, print what would be trained, and exit without training"""


class Checked(NamedTuple):
    """A recipe that passed all checks before ranks are started.

    Attributes:
        recipe: the recipe.
        recipe_file: path of the recipe; for a run's folder, the recipe in it.
        overrides: changed keys of the recipe to pass to the ranks, such as ``["--training.steps", "10"]``.
        prepared: results of the checks that the run needs: documents, tokenizer, DeepSpeed configuration.
    """

    recipe: Recipe
    recipe_file: Path
    overrides: list[str]
    prepared: "Prepared"


def checked(
    command: str, source: Path, overrides: list[str], problems: list[str], *, writes_output: bool = False
) -> Checked:
    """Load a recipe and check it against the model, the data and this machine.

    Args:
        command: ``train`` or ``evaluate``.
        source: a recipe, or the folder of a run; to evaluate, also one of its checkpoints, or a converted folder.
        overrides: keys of the recipe to change, such as ``["--training.steps", "10"]``.
        problems: problems of the options, reported together with those of the recipe.
        writes_output: whether training.output will be written, so that it must not hold another run.

    Raises:
        ConfigError: with a line for each problem.
    """
    evaluates = command == "evaluate"
    recipe_file = source
    if source.is_dir():
        recipe_file = recipe_file_of(run_of(source)) if evaluates else source / "recipe.yaml"
    if source.is_dir() and not recipe_file.exists() and (source / "config.json").exists():
        problems.append(f"{source} is a model, not a run: {command} a recipe with --model.source {source}")
        raise ConfigError(problems)
    if source.is_dir() or evaluates:
        overrides = [*NO_CONSENT, *overrides]
    with collected(problems):
        recipe = load_recipe(recipe_file, overrides)
        prepared = check_recipe(recipe, recipe_file, writes_output=writes_output, with_data=True)
    if problems:
        raise ConfigError(problems)
    return Checked(recipe, recipe_file, overrides, prepared)


def start_ranks(command: str, source: Path, ranks: int | None, overrides: list[str], problems: list[str]) -> int:
    """Check a recipe, then train or evaluate it on ranks of this machine; return the exit code.

    Args:
        command: ``train`` or ``evaluate``.
        source: a recipe, or the folder of a run; to evaluate, also one of its checkpoints, or a converted folder.
        ranks: number of ranks; None for one per GPU, or as many as wrote the run's newest checkpoint.
        overrides: keys of the recipe to change, such as ``["--training.steps", "10"]``.
        problems: problems of the options, reported together with those of the recipe.

    Raises:
        ConfigError: with a line for each problem.
    """
    found = checked(command, source, overrides, problems, writes_output=command == "train")
    if command == "evaluate":
        named, default = str(source), evaluating_ranks(run_of(source), found.recipe.pipeline.stages)
    else:
        named, default = str(found.recipe_file), ranks_of(source)
    code = run_ranks(f"hmt_ds.{command}", [named, *found.overrides], ranks or default or number_of_gpus() or 1)
    if text := what_next(command, code, named, found.recipe.training.output):
        print(f"next        {text}")
    return code


def what_next(command: str, code: int, source: str, output: str) -> str | None:
    """Return a line with commands to try after a run; None if the run failed or was stopped.

    Args:
        command: ``train`` or ``evaluate``.
        code: exit code of the command.
        source: recipe or folder that the command was given.
        output: folder of the run (``training.output``).
    """
    if code:
        return None
    if command == "train":
        return f"hmt-ds report {output}, or hmt-ds convert {output} FOLDER"
    if recipe_file_of(Path(source)).name == CONFIG_FILE:  # its evaluations are all on data of others
        return f"hmt-ds compare BASELINE {source}/evaluation/FILE.json"
    return f"hmt-ds compare BASELINE {source}, or hmt-ds report {source}"


def dry_run(
    source: Path, ranks: int | None, overrides: list[str], problems: list[str], *, writes_output: bool = True
) -> int:
    """Check a recipe and print what it would train, without starting ranks; return the exit code.

    Args:
        source: a recipe, or the folder of a run.
        ranks: number of ranks; None for one per GPU, or as many as wrote the run's newest checkpoint.
        overrides: keys of the recipe to change, such as ``["--training.steps", "10"]``.
        problems: problems of the options, reported together with those of the recipe.
        writes_output: whether to refuse a training.output that holds another run.

    Raises:
        ConfigError: with a line for each problem.
    """
    start_log(0)  # which says what of the data is left out
    found = checked("train", source, overrides, problems, writes_output=writes_output)
    from hmt_ds.launch.dry_run import dry_run_lines

    print("\n".join(dry_run_lines(found.recipe, found.recipe_file, found.prepared, ranks, overrides)))
    return 0


def evaluating_ranks(source: Path, stages: int) -> int | None:
    """Return how many ranks evaluate a run by default: as many as trained it, but at most one per GPU or CPU core here.

    The result of an evaluation does not depend on this number, which must be a multiple of the pipeline stages.

    Args:
        source: the run's folder, or a recipe, for which None is returned.
        stages: number of pipeline stages.
    """
    trained, here = ranks_of(source), number_of_gpus() or os.cpu_count() or 1
    return trained and max(stages, min(trained, here) // stages * stages)


def start_bench(
    source: Path, ranks: int | None, options: BenchOptions, overrides: list[str], problems: list[str]
) -> int:
    """Check a recipe, then benchmark it on ranks of this machine; return the exit code.

    Args:
        source: a recipe, or the folder of a run.
        ranks: number of ranks; None for one per GPU, or as many as wrote the run's newest checkpoint.
        options: options of ``hmt-ds bench``.
        overrides: keys of the recipe to change, such as ``["--training.batch_size", "2"]``.
        problems: problems of the options, reported together with those of the recipe.

    Raises:
        ConfigError: with a line for each problem.
    """
    recipe_file = source / "recipe.yaml" if source.is_dir() else source
    if source.is_dir():
        overrides = [*NO_CONSENT, *overrides]
    if options.reference and ranks is None:
        ranks = 1
    with collected(problems):
        recipe = load_recipe(recipe_file, overrides)
        check_recipe(recipe, recipe_file, writes_output=False, with_data=options.tokens == "data")
        if options.reference:
            from hmt_ds.benchmark.run import check_reference, measured_recipe

            check_reference(measured_recipe(recipe), options, ranks or 1)
    if problems:
        raise ConfigError(problems)
    words = [str(recipe_file), *words_of(options), *overrides]
    return run_ranks("hmt_ds.bench", words, ranks or ranks_of(source) or number_of_gpus() or 1)


def start_generation(source: Path, options: GenerateOptions, overrides: list[str]) -> int:
    """Generate on ranks of this machine that divide the weights among them; return the exit code.

    Args:
        source: folder of a run, or of one of its checkpoints.
        options: options of ``hmt-ds generate``.
        overrides: transformers' generation settings, such as ``["--generation.top_p", "0.9"]``.
    """
    set_rank_environment()
    go_offline_without_hub()
    return run_ranks("hmt_ds.generate", [str(source), *words_of(options), *overrides], options.ranks)


def check_recipe(recipe: Recipe, recipe_file: Path, *, writes_output: bool, with_data: bool) -> "Prepared":
    """Check a recipe against the model, the data and this machine.

    Args:
        recipe: the recipe.
        recipe_file: path of the recipe; paths in the recipe may be relative to its folder.
        writes_output: whether training.output will be written, so that it must not hold another run.
        with_data: whether to load documents and tokenizer too.

    Returns:
        What the run needs: documents, tokenizer, DeepSpeed configuration.

    Raises:
        ConfigError: with a line for each problem.
    """
    set_rank_environment()
    go_offline_without_hub()
    # imported here because it takes seconds: a recipe with a wrong key is refused before
    with quick_imports():
        from hmt_ds.distributed.process_group import silence_libraries
        from hmt_ds.preflight.prepare import prepare

    silence_libraries()
    return prepare(recipe, recipe_file, writes_output=writes_output, with_data=with_data)


def set_rank_environment() -> None:
    """Set environment variables (PATH, CPU threads, malloc) of this process, which the ranks that it starts inherit."""
    # DeepSpeed compiles with ninja, which is beside this Python where the environment was not activated
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    if not number_of_gpus():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        # by default glibc returns large blocks to the system at once, and page faults make tensors 3 to 7 times slower
        os.environ.setdefault("MALLOC_MMAP_MAX_", "0")
        os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", "100000000000")
        os.environ.setdefault("MALLOC_TOP_PAD_", "1073741824")


def go_offline_without_hub() -> None:
    """Set HF_HUB_OFFLINE if the name of the Hugging Face hub cannot be resolved, which saves minutes of retries.

    Does nothing behind a proxy, which may resolve names that this machine cannot.
    """
    proxies = [name for name in os.environ if name.lower() in ("https_proxy", "all_proxy")]
    if proxies or "HF_HUB_OFFLINE" in os.environ:
        return
    host = urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"


def number_of_gpus() -> int:
    """Return the number of GPUs of this machine that torch can use."""
    import torch

    return torch.cuda.device_count()


def ranks_of(run: Path) -> int | None:
    """Return the number of ranks that wrote a run's newest checkpoint; None if there is no checkpoint.

    Args:
        run: folder of the run.
    """
    saved = newest_state(run / "checkpoints")
    return None if saved is None else int(saved["world_size"])
