"""Slurm job scripts, rendered from the template `job.sbatch.j2` for users to read and edit."""

import shlex
import sys
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from hmt_ds.config.load import PROJECT

NODE_ENV = PROJECT / "launch" / "node_env.sh"
TITLES = {
    "train": "Train. The job is requeued until the run is complete.",
    "evaluate": "Evaluate a run's newest checkpoint on held-out documents.",
    "convert": "Convert a run to a Hugging Face folder.",
}


@dataclass(frozen=True)
class Allocation:
    """The resources that a job requests from Slurm.

    Attributes:
        nodes: smallest number of nodes.
        most_nodes: largest number of nodes; more than ``nodes`` only with ``training.elastic``.
        gpus_per_node: number of GPUs, and of ranks, per node.
        time: time limit, in a form that sbatch accepts.
        partition: Slurm partition; None for the cluster's default.
        account: Slurm account; None for the user's default.
        array: number of runs with different seeds; None for a single run.
        sbatch: further options of sbatch, without dashes.
        container: image that everything runs in: a path, or a name for Pyxis; None for no container.
        mounts: paths that the container has besides the usual ones.
    """

    nodes: int
    most_nodes: int
    gpus_per_node: int
    time: str
    partition: str | None = None
    account: str | None = None
    array: int | None = None
    sbatch: tuple[str, ...] = ()
    container: str | None = None
    mounts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """A Slurm job: a command of hmt-ds and the resources that it runs on.

    Attributes:
        command: ``train``, ``evaluate`` or ``convert``.
        words: arguments of the command: for train the path of the recipe and keys to change, for the others options.
        folder: folder of the run.
        seed: seed of the run, or of the first run of a Slurm array.
        allocation: requested resources.
        tries: number of starts from the same newest checkpoint after which the job gives up.
        target: name of the folder that convert writes, within the run's folder; None for the other commands.
    """

    command: str
    words: tuple[str, ...]
    folder: Path
    seed: int
    allocation: Allocation
    tries: int = 3
    target: str | None = None

    @property
    def runs(self) -> list[Path]:
        """Folders of the runs that the Slurm job trains, evaluates or converts: one, or one per seed of an array."""
        return run_folders(self.folder, self.seed, self.allocation.array)

    def script(self, file: Path) -> str:
        """Render the Slurm job script as text.

        Args:
            file: path that the script will be written to.
        """
        array = self.allocation.array
        in_template = {"training.output", "checkpoint.resume", *(["training.seed"] if array else [])}
        log = f"{self.command}-{'%A_%a' if array else '%j'}.out"
        environment = Environment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
        environment.filters["quote"] = shlex.quote
        template = environment.from_string(files("hmt_ds.launch").joinpath("job.sbatch.j2").read_text())
        rendered = template.render(
            asdict(self.allocation),
            command=self.command,
            title=TITLES[self.command],
            written_by=shlex.join(["hmt-ds", *sys.argv[1:]]),
            file=shlex.quote(str(file)),
            name=shlex.quote(f"{self.folder.name}-{self.command}"),
            log=shlex.quote(str(file.with_name(log).absolute())),
            here=shlex.quote(str(Path.cwd())),
            venv=shlex.quote(sys.prefix),
            project=shlex.quote(str(PROJECT)),
            node_env=shlex.quote(str(NODE_ENV)),
            folder=shlex.quote(str(self.folder)),
            words=[shlex.quote(word) for word in self.words],
            options=override_lines(self.words[1:], in_template) if self.command == "train" else [],
            arguments="".join(f" {shlex.quote(word)}" for word in self.words),
            seed=self.seed,
            tries=self.tries,
            target=self.target,
        )
        return rendered.rstrip() + "\n"


def run_folders(folder: Path, seed: int, array: int | None) -> list[Path]:
    """Return the folders of the runs that a Slurm job trains.

    Args:
        folder: folder of the recipe's run.
        seed: seed of the first run.
        array: number of runs with different seeds, each in its folder ``seed_N``; None for one run in ``folder``.
    """
    return [folder / f"seed_{seed + number}" for number in range(array)] if array else [folder]


def override_lines(words: tuple[str, ...], leave_out: set[str]) -> list[str]:
    """Format changed keys of a recipe as lines for a script: ``--section.key value`` or ``--section.key=value``.

    Args:
        words: the keys and values as words of a command line.
        leave_out: keys to omit, because the job script sets them in another way.
    """
    lines: list[str] = []
    rest = list(words)
    while rest:
        key, equals, _ = rest[0].removeprefix("--").partition("=")
        taken = 1 if equals else 2
        if key not in leave_out:
            lines.append(shlex.join(rest[:taken]))
        rest = rest[taken:]
    return lines
