"""Plan the Slurm jobs of `hmt-ds launch`: a training run, then the commands given by ``--then``."""

import shlex
from pathlib import Path

from hmt_ds.config.config_error import ConfigError, collected
from hmt_ds.config.load import NO_CONSENT, load_recipe
from hmt_ds.config.options import parse_options
from hmt_ds.config.recipe import Recipe
from hmt_ds.conversion.conversion_error import ConversionError
from hmt_ds.conversion.convert_options import ConvertOptions, check_not_foreign, check_part
from hmt_ds.launch.launch_options import LaunchOptions, is_file
from hmt_ds.launch.script import NODE_ENV, Allocation, Job, run_folders
from hmt_ds.preflight.folder_checks import check_folders, check_output

COMMANDS = ("train", "evaluate", "convert")


def plan_jobs(recipe_file: str, options: LaunchOptions, overrides: list[str], problems: list[str]) -> list[Job]:
    """Check the recipes and options of `hmt-ds launch`, and return its Slurm jobs in order.

    Args:
        recipe_file: recipe of the first job, which trains.
        options: options of ``hmt-ds launch``.
        overrides: keys of the first recipe to change, such as ``["--training.steps", "10"]``.
        problems: error lines found before; reported together with those of the jobs.

    Raises:
        ConfigError: with a line for each problem of any job.
    """
    if not NODE_ENV.exists():
        problems.append(f"{NODE_ENV}: not found: install the project from its clone with pip install -e .")
    jobs: list[Job] = []
    run: list[str] = []  # recipe and overrides of the run that the next commands refer to; empty if it is wrong
    for text in [shlex.join(["train", recipe_file, *overrides]), *options.then]:
        with collected(problems):
            command, *words = split_command(text)
            if command == "train":
                run = []
                jobs.append(training_job(words, options))
                run = words
            elif run:
                jobs.append(following_job(command, words, run, jobs, options))
    if problems:
        raise ConfigError(problems)
    return jobs


def split_command(text: str) -> list[str]:
    """Split the text of ``--then`` into the name of a command and its arguments.

    Raises:
        ConfigError: the quotes do not match, or the command is unknown.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError([f"--then: must be quoted as in a shell, got {text!r} ({str(error).lower()})"]) from None
    if words and words[0] in COMMANDS:
        return words
    raise ConfigError([f"--then: must begin with one of {', '.join(COMMANDS)}, got {text!r}"])


def training_job(words: list[str], options: LaunchOptions) -> Job:
    """Check a recipe and return the Slurm job that trains it.

    Args:
        words: path of the recipe, then keys to change, such as ``["a.yaml", "--training.steps", "10"]``.
        options: options of ``hmt-ds launch``.

    Raises:
        ConfigError: the recipe is wrong, would overwrite a run, or lacks ``training.elastic`` for a range of nodes.
    """
    if not words:
        raise ConfigError(["--then train: no recipe given, write it as --then 'train RECIPE.yaml'"])
    recipe = load_recipe(words[0], words[1:])
    problems = check_run(recipe, options)
    if problems:
        raise ConfigError(problems)
    allocation = allocate(options, options.fewest_nodes, options.most_nodes)
    training = recipe.training
    return Job("train", tuple(words), Path(training.output), training.seed, allocation, options.tries)


def check_run(recipe: Recipe, options: LaunchOptions) -> list[str]:
    """Return an error line for each reason why a Slurm job could not train a recipe; an empty list if it can.

    Args:
        recipe: the recipe to train.
        options: options of ``hmt-ds launch``.
    """
    training = recipe.training
    problems = check_folders(recipe)
    if "\n" in training.output:
        problems.append(f"training.output: must be one line, got {training.output!r}: give another folder")
    for folder in run_folders(Path(training.output), training.seed, options.array):
        run = training.model_copy(update={"output": str(folder)})
        problems += check_output(recipe.model_copy(update={"training": run}))
    if options.fewest_nodes < options.most_nodes and not training.elastic:
        problems.append(f"--nodes: a range such as {options.nodes} needs --training.elastic true")
    return problems


def following_job(command: str, words: list[str], run: list[str], jobs: list[Job], options: LaunchOptions) -> Job:
    """Return the Slurm job that evaluates or converts a run after its training.

    Args:
        command: ``evaluate`` or ``convert``.
        words: arguments of the command.
        run: path of the run's recipe, then its changed keys.
        jobs: the earlier jobs of the launch; the last of them uses the same run.
        options: options of ``hmt-ds launch``.

    Raises:
        ConfigError: with a line for each reason why the command would fail.
    """
    target = None
    try:
        if command == "evaluate":
            check_evaluation(words, run)
        else:
            target = check_conversion(words, run)
    except (ConfigError, ConversionError) as error:
        raise ConfigError([f"--then {command}: {line}" for line in str(error).splitlines()]) from None
    last = jobs[-1]
    job = Job(command, tuple(words), last.folder, last.seed, allocate(options, 1, 1), options.tries, target)
    if target and (problems := target_problems(job, target, jobs)):
        raise ConfigError([f"--then convert: {line}" for line in problems])
    return job


def check_evaluation(words: list[str], run: list[str]) -> None:
    """Check that ``hmt-ds evaluate`` can evaluate a run after its training.

    Args:
        words: keys to change for the evaluation, such as ``["--evaluation.documents", "10"]``.
        run: path of the run's recipe, then its changed keys.

    Raises:
        ConfigError: a key or value is wrong, or there are no held-out documents.
    """
    recipe = load_recipe(run[0], [*run[1:], *NO_CONSENT, *words])
    if recipe.data.validation is None and recipe.data.retrieval is None:
        raise ConfigError(["data.validation: missing, there are no held-out documents to evaluate: set it to a path"])
    if load_recipe(run[0], run[1:]).model.trust_remote_code and not recipe.model.trust_remote_code:
        raise ConfigError(["the model's own code runs only with consent: add --model.trust_remote_code true"])


def check_conversion(words: list[str], run: list[str]) -> str:
    """Check that ``hmt-ds convert`` can convert a run after its training.

    Args:
        words: options of the conversion.
        run: path of the run's recipe, then its changed keys.

    Returns:
        Name of the folder that the conversion will write, inside the run's folder.

    Raises:
        ConfigError: an option is wrong.
        ConversionError: the run's model lacks the part named by ``--what``.
    """
    recipe = load_recipe(run[0], run[1:])
    options, unknown = parse_options(ConvertOptions, words)
    check_not_foreign(options)
    check_part(options, recipe.memory.mode, recipe.model.train)
    if unknown:
        raise ConfigError([f"unrecognized arguments of convert: {shlex.join(unknown)}; remove them"])
    return "converted" if options.what == "model" else f"converted-{options.what}"


def target_problems(job: Job, target: str, earlier: list[Job]) -> list[str]:
    """Return an error line for each reason why a conversion cannot write its folder; an empty list if it can.

    The folder may exist already, or be the target of an earlier job of the launch.

    Args:
        job: the Slurm job that converts.
        target: name of the folder to write, inside the run's folder.
        earlier: jobs of the launch that run before the conversion.
    """
    existing = [folder / target for folder in job.runs if (folder / target).exists()]
    problems = [f"{path} exists: move it away" for path in existing]
    if any((other.folder, other.target) == (job.folder, target) for other in earlier):
        problems.append(f"two would write {job.folder / target}: leave one out, or name another part with --what")
    return problems


def allocate(options: LaunchOptions, fewest: int, most: int) -> Allocation:
    """Return the resources to request from Slurm for a job.

    Args:
        options: options of ``hmt-ds launch``, which give GPUs, time limit, partition and so on.
        fewest: smallest number of nodes.
        most: largest number of nodes.
    """
    return Allocation(
        fewest,
        most,
        options.gpus_per_node,
        options.time,
        options.partition,
        options.account,
        options.array,
        options.sbatch,
        str(Path(options.container).absolute())
        if options.container and is_file(options.container)
        else options.container,
        tuple(str(Path(path).absolute()) for path in options.container_mount),
    )
