"""``hmt-ds status RUN``: the state of a run, from any shell or node that sees the run's folder."""

import time
from statistics import median

from tqdm import tqdm

from hmt_ds.overview.run_folder import RankNote, RunFolder

RECENT = 20  # steps that speed and loss are averaged over
LATE = 10.0  # times a step's usual seconds without progress after which a rank counts as stuck
LATE_SECONDS = 60.0  # at least
QUIET = 30.0  # seconds without a word of a rank's watchdog
SHOWN = 5  # ranks and warnings that are listed


def stuck(note: RankNote, limit: float) -> str | None:
    """Describe why a rank makes no progress, in one line; None if it does make progress.

    Args:
        note: what the rank's watchdog process wrote.
        limit: seconds without progress after which the rank counts as stuck.
    """
    if note.age > QUIET:
        return f"its watchdog has not written for {note.age:.0f} s: the machine is down, or does not reach the folder"
    if note.stopped:
        return f"its process is stopped, for {note.silent:.0f} s after {note.after}"
    if note.silent > limit:
        return f"no progress for {note.silent:.0f} s after {note.after}"
    return None


class Status:
    """The state of a run, and lines that describe it to the user.

    Args:
        run: the run's folder.

    Attributes:
        state: ``running``, ``stuck``, ``finished``, ``stopped``, ``failed``, ``died`` or ``not started``.
        stuck: a line for each rank that makes no progress.
        seconds: median duration of the last logged steps; None before the first.
        holder: the process that trains the run, as its lock file describes it; None if none does.
    """

    def __init__(self, run: RunFolder):
        self.run, self.holder, self.notes = run, run.holder(), run.ranks()
        rows = [row for row in run.rows[-RECENT:] if row.get("seconds")]
        self.seconds = median(row["seconds"] for row in rows) if rows else None
        limit = max(LATE_SECONDS, LATE * (self.seconds or 0.0))
        found = {note: stuck(note, limit) for note in self.notes}
        self.stuck = [f"rank {note.rank} on {note.host}: {text}" for note, text in found.items() if text]
        self.state = self.find_state()

    def find_state(self) -> str:
        """Determine the state of the run from its lock file, the notes of its ranks, and the last event of its history.

        Returns:
            ``running``, ``stuck``, ``finished``, ``stopped``, ``failed``, ``died`` or ``not started``.
        """
        if self.holder:
            return "stuck" if self.stuck else "running"
        last = self.run.history[-1]["kind"] if self.run.history else ""
        if last == "end" or (not self.run.history and self.run.step >= self.run.steps):
            return "finished"
        if last == "failed":
            return "failed"
        if last == "stop":
            return "stopped"
        return "died" if self.run.rows or self.run.history else "not started"

    @property
    def ok(self) -> bool:
        """Whether the run needs no attention: it is running, finished or stopped by its user."""
        return self.state in ("running", "finished", "stopped")

    def lines(self) -> list[str]:
        """Return the lines that `hmt-ds status` prints about the run."""
        lines = [f"run          {self.run.folder}: {self.state}{self.who()}", f"step         {self.progress()}"]
        lines += self.loss_and_speed() + self.evaluation() + self.saved() + self.rank_lines()
        warnings = self.run.events("warning")
        lines += [f"warning      step {event['step']}: {event['text']}" for event in warnings[-SHOWN:]]
        return [*lines, f"next         {self.what_next()}"]

    def who(self) -> str:
        """Return the end of the status line: ``, process 123 on HOST since TIME`` for a run in training, or ``:
        REASON`` if it failed.

        Empty otherwise.
        """
        if self.holder:
            return f", process {self.holder.get('pid')} on {self.holder.get('host')} since {self.holder.get('since')}"
        failed = self.run.events("failed")
        return f": {failed[-1]['text']}" if self.state == "failed" and failed else ""

    def progress(self) -> str:
        """Describe how far the run is: optimizer step, last step, percentage, and the time left while it is running."""
        step, steps = self.run.step, self.run.steps
        text = f"{step:,} of {steps:,} ({step / steps:.0%})"
        if self.seconds and self.holder and step < steps:
            text += f", {tqdm.format_interval(int(self.seconds * (steps - step)))} left"
        return text

    def loss_and_speed(self) -> list[str]:
        """Return lines about the newest 20 logged steps: loss, speed, number of skipped steps.

        The loss is in nats per token, with that of the 20 steps before. Speed is tokens/s per rank, seconds per step
        and peak memory (GiB). Lines without a value are left out.
        """
        rows = [row for row in self.run.rows if row.get("loss") is not None]
        lines = []
        if rows:
            now, before = rows[-RECENT:], rows[-2 * RECENT : -RECENT]
            text = f"{mean(now, 'loss'):.3f} (mean of {len(now)} logged steps"
            lines.append(
                f"loss         {text}, {mean(before, 'loss'):.3f} before)" if before else f"loss         {text})"
            )
        if rows and self.seconds:
            speed = f"{mean(rows[-RECENT:], 'tokens_per_second'):,.0f} tokens/s per rank, {self.seconds:.2f} s a step"
            peak = rows[-1].get("peak_memory_gib")
            lines.append(f"speed        {speed}" + (f", {peak:.2f} GiB on rank 0" if peak else ""))
        skipped = int(self.run.rows[-1].get("skipped") or 0) if self.run.rows else 0
        return lines + ([f"skipped      {skipped} steps whose gradients were not finite"] if skipped else [])

    def evaluation(self) -> list[str]:
        """Return a line about the run's newest evaluation; an empty list if the run was not evaluated."""
        events = self.run.events("evaluation")
        return [f"evaluation   of step {events[-1]['step']}, {ago(events[-1]['time'])}"] if events else []

    def saved(self) -> list[str]:
        """Return lines about the run's newest checkpoint (step, age, size, when the next is due), and about damaged
        checkpoints."""
        found = self.run.checkpoints
        if not found:
            return ["checkpoint   none yet"]
        newest = found[-1]
        due = newest.step + int(self.run.recipe.get("checkpoint", {}).get("every", 500))
        size = f"{newest.bytes / 1e9:.2f} GB" if newest.bytes >= 1e8 else f"{newest.bytes / 1e6:.1f} MB"
        after = f", the next after step {due:,}" if self.holder and due < self.run.steps else ""
        lines = [f"checkpoint   step {newest.step:,}, {ago(newest.time)}, {size}; {len(found)} kept{after}"]
        return lines + [f"damaged      checkpoint of step {one.step}: {one.damage[0]}" for one in found if one.damage]

    def rank_lines(self) -> list[str]:
        """Return lines about the ranks of a run in training: how many make progress, and up to 5 that do not."""
        if not self.holder or not self.notes:
            return []
        hosts = len({note.host for note in self.notes})
        alive = len(self.notes) - len(self.stuck)
        lines = [f"ranks        {alive} of {len(self.notes)} make progress, on {hosts} machine{'s' * (hosts > 1)}"]
        more = len(self.stuck) - SHOWN
        return (
            lines
            + [f"stuck        {line}" for line in self.stuck[:SHOWN]]
            + [f"stuck        and {more} more"] * (more > 0)
        )

    def what_next(self) -> str:
        """Return what the user can do next with the run, mostly a command such as ``hmt-ds report RUN``."""
        folder = self.run.folder
        if self.state == "finished":
            return f"hmt-ds report {folder}"
        if self.state == "running":
            return f"hmt-ds status {folder} again, or hmt-ds report {folder}"
        if self.state == "stuck":
            minutes = self.run.recipe["training"].get("hang_minutes", 10)
            return f"after {minutes:g} minutes of silence the run is killed (training.hang_minutes) and can be resumed"
        return f"hmt-ds train {folder} --checkpoint.resume auto"


def mean(rows: list[dict[str, float]], name: str) -> float:
    """Return the mean of a metric over logged steps.

    Args:
        rows: metrics of the steps, by name.
        name: name of the metric, such as ``loss``.
    """
    return sum(row[name] for row in rows) / len(rows)


def ago(moment: float) -> str:
    """Format how long ago a time was, such as ``03:20 ago`` (minutes and seconds).

    Args:
        moment: the time, in seconds since 1970.
    """
    return f"{tqdm.format_interval(int(max(0, time.time() - moment)))} ago"
