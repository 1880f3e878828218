"""A job script for one of our commands, as a person would have written it (`job.sbatch.j2`)."""

import shlex
import sys
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from hmt_ds.config.load import PROJECT

NODE_ENV = PROJECT / "launch" / "node_env.sh"
TITLES = {
    "train": "Train. The job goes back into the queue until the run is at its end.",
    "evaluate": "Held-out perplexity of a run's newest checkpoint.",
    "convert": "A run as a Hugging Face folder.",
}


@dataclass(frozen=True)
class Allocation:
    """What a job asks of Slurm.

    Attributes:
        nodes, most_nodes: machines, at least and at most.
        gpus_per_node: and ranks.
        time: in one of Slurm's forms.
        partition, account: None for the cluster's default.
        array: how many runs, which differ in their seed; None for one.
        sbatch: more options, as sbatch takes them.
    """

    nodes: int
    most_nodes: int
    gpus_per_node: int
    time: str
    partition: str | None = None
    account: str | None = None
    array: int | None = None
    sbatch: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """One command on an allocation.

    Attributes:
        command: train, evaluate or convert.
        words: what follows it: recipe and overrides for train, else options alone.
        folder: of the run.
        seed: of the run, the first one of an array.
        tries: starts that may find the same newest checkpoint.
        target: what convert writes, below the run's folder.
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
        """Folders of the runs that it is about."""
        return run_folders(self.folder, self.seed, self.allocation.array)

    def script(self, file: Path) -> str:
        """The script's text.

        Args:
            file: where it is going to be.
        """
        array = self.allocation.array
        said = {"training.output", "checkpoint.resume", *(["training.seed"] if array else [])}
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
            node_env=shlex.quote(str(NODE_ENV)),
            folder=shlex.quote(str(self.folder)),
            words=[shlex.quote(word) for word in self.words],
            options=options_of(self.words[1:], said) if self.command == "train" else [],
            arguments="".join(f" {shlex.quote(word)}" for word in self.words),
            seed=self.seed,
            tries=self.tries,
            target=self.target,
        )
        return rendered.rstrip() + "\n"


def run_folders(folder: Path, seed: int, array: int | None) -> list[Path]:
    """Where the runs of a job go, as its script says: into the folder itself, those of an array into one per seed."""
    return [folder / f"seed_{seed + number}" for number in range(array)] if array else [folder]


def options_of(words: tuple[str, ...], said: set[str]) -> list[str]:
    """Overrides, a line each: ``--section.key value`` or ``--section.key=value``.

    Args:
        said: keys to be left out, for the script says them itself.
    """
    lines: list[str] = []
    rest = list(words)
    while rest:
        key, equals, _ = rest[0].removeprefix("--").partition("=")
        taken = 1 if equals else 2
        if key not in said:
            lines.append(shlex.join(rest[:taken]))
        rest = rest[taken:]
    return lines
