"""End runs rudely, and start them twice: nothing is lost, nobody is left, and losses are those of an undisturbed run.

    python tests/distributed/rude_ends.py [--times 20] [--kinds killed hangup ...] [--places local shared] [--seed 0]

`killed` and `hangup` signal `hmt-ds train` itself, which runs DeepSpeed's launcher and two ranks; `twice` starts a run
two times at once; `dead_holder` starts one beside the lock of a killed one. `shared` simulates a shared file system:
each start seems to be on a machine of its own.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from kills import check_checkpoints, losses, newest
from tiny_recipe import (
    command_of,
    finish,
    make_materials,
    processes_of,
    signal_at,
    start,
    train,
    train_alone,
    write_recipe,
)

from hmt_ds.checkpoint.run_lock import LOCKS
from hmt_ds.distributed.stopping import STOPPED

ELSEWHERE = Path(__file__).with_name("elsewhere")
STEPS = 30
WORDS = ("--training.steps", str(STEPS), "--checkpoint.every", "3", "--checkpoint.resume", "auto")
PATIENCE = 400.0  # seconds for a start, beside other work


class Rude:
    """One kind of end at one place.

    Args:
        folder: holds text and tokenizer.
        place: ``local`` or ``shared``.
        seed: seed of the moments.
    """

    def __init__(self, folder: Path, place: str, seed: int):
        self.folder, self.place, self.recipe = folder, place, write_recipe(folder, 1)
        self.dice, self.starts, self.runs = random.Random(f"{place} {seed}"), 0, 0
        self.expected: dict[int, object] = {}

    def environment(self) -> dict[str, str]:
        """The environment of the next start, which is on another machine than all before if the place is shared."""
        self.starts += 1
        if self.place == "local":
            return {}
        paths = os.pathsep.join(filter(None, [str(ELSEWHERE), os.environ.get("PYTHONPATH")]))
        return {"PYTHONPATH": paths, "HMT_DS_ELSEWHERE": f"machine {self.starts}"}

    def output(self) -> Path:
        """The folder of the current run."""
        return self.folder / f"{self.place}_{self.runs:03d}"

    def check_whole(self, ranks: int) -> None:
        """Check a finished run, and begin another one: each step once, with the losses of an undisturbed run."""
        if ranks not in self.expected:
            code, printed = train(self.recipe, self.folder / f"{self.place}_{ranks}", *WORDS, ranks=ranks)
            assert code == 0, printed[-3000:]
            self.expected[ranks] = losses(self.folder / f"{self.place}_{ranks}")
        assert losses(self.output()) == self.expected[ranks], losses(self.output())
        assert newest(self.output()) == STEPS and not list(self.output().glob(LOCKS))
        self.runs += 1

    def signalled(self, number: int) -> str:
        """Start or resume a run, send a signal to `hmt-ds train` at a random moment, and check what is left."""
        output, before = self.output(), newest(self.output())
        moment = self.dice.uniform(0, 1.5)

        def command(output: Path) -> list[psutil.Process]:
            time.sleep(moment)
            return command_of(output)

        with start(self.recipe, output, *WORDS, **self.environment()) as process:
            signal_at(process, command, number, output, 1, PATIENCE)
            code, printed = finish(process, PATIENCE)
            deadline = time.monotonic() + 60
            while left := processes_of(output):
                assert time.monotonic() < deadline, [one.cmdline() for one in left]
                time.sleep(0.1)
        assert "Traceback" not in printed, printed[-6000:]
        check_checkpoints(output, before)
        if code == 0:
            self.check_whole(2)
            return "at the end"
        assert code == (STOPPED if number == signal.SIGHUP else -number), (code, printed[-6000:])
        if number == signal.SIGHUP:
            assert newest(output) == losses(output)[-1][0], "steps after the last checkpoint were lost"
        return "between steps"

    def killed(self) -> str:
        """SIGKILL of `hmt-ds train`."""
        return self.signalled(signal.SIGKILL)

    def hangup(self) -> str:
        """SIGHUP of `hmt-ds train`, as when its terminal closes."""
        return self.signalled(signal.SIGHUP)

    def finish_run(self) -> None:
        """Let a run that was ended finish, and compare it."""
        if losses(self.output()) if self.output().exists() else []:
            code, printed = train(self.recipe, self.output(), *WORDS, **self.environment())
            assert code == 0, printed[-6000:]
            self.check_whole(2)

    def twice(self) -> str:
        """Two starts of one run at once."""
        one, other = self.environment(), self.environment()
        words = (self.recipe, self.output(), *WORDS)
        with train_alone(*words, ranks=1, **one) as first:
            time.sleep(self.dice.choice([0, 0, 0.1, 0.5]))
            with train_alone(*words, ranks=1, **other) as second:
                ended = sorted([finish(first, PATIENCE), finish(second, PATIENCE)])
        assert [code for code, _ in ended] in ([0, 2], [0, 0]), ended
        refused = ended[1][1]
        if ended[1][0]:
            errors = [line for line in refused.splitlines() if line.startswith("error: ")]
            assert len(errors) == 1 and "another start trains into" in errors[0], refused
        self.check_whole(1)
        return "one refused" if ended[1][0] else "one after the other"

    def dead_holder(self) -> str:
        """A start beside the lock of a killed one."""
        step, output = self.dice.randrange(1, 20), self.output()
        with train_alone(self.recipe, output, *WORDS, ranks=1, **self.environment()) as run:
            signal_at(run, lambda _: run.ranks, signal.SIGKILL, output, step, PATIENCE)
        assert len(list(output.glob(LOCKS))) == 1
        code, printed = train(self.recipe, output, *WORDS, ranks=1, **self.environment())
        assert code == 0 and "Traceback" not in printed, printed[-6000:]
        assert ("sign of life" in printed) == (self.place == "shared"), printed[-6000:]
        self.check_whole(1)
        return "taken over"


KINDS: dict[str, Callable[[Rude], str]] = {
    "killed": Rude.killed,
    "hangup": Rude.hangup,
    "twice": Rude.twice,
    "dead_holder": Rude.dead_holder,
}


def main() -> None:
    """Run all kinds at all places, and print how often each ended how."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--places", nargs="+", default=["local", "shared"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # else nohup makes every run ignore it
    for kind in options.kinds:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            make_materials(folder)
            rude = {place: Rude(folder, place, options.seed) for place in options.places}
            ends: dict[str, list[str]] = {place: [] for place in rude}
            for number in range(options.times):
                for place, one in rude.items():
                    ends[place].append(KINDS[kind](one))
                    print(f"{kind}, {place}, {number + 1}: {ends[place][-1]}", file=sys.stderr, flush=True)
            for place, one in rude.items():
                one.finish_run()
                counts = {end: ends[place].count(end) for end in sorted(set(ends[place]))}
                print(f"{kind}, {place}: {len(ends[place])} times, {counts}, {one.runs} runs whole", flush=True)


if __name__ == "__main__":
    main()
