"""``hmt-ds plan``: a ring pipeline before it runs, as a picture, and beside ZeRO on clusters."""

import argparse
from dataclasses import replace

from rich.console import Console

from hmt_ds.parallel.pipeline.schedule import UNIT, pipeline_schedule, summaries_together
from hmt_ds.planning.plan_options import ScheduleOptions, take_plan_options
from hmt_ds.planning.simulate import Machine, Timeline, lower_bound, simulate
from hmt_ds.reporting.pipeline_timeline import timeline_lines
from hmt_ds.reporting.progress import print_problems

WIDTH = 100


def plan(arguments: argparse.Namespace) -> int:
    """Print what was asked for; returns the exit code."""
    options, problems = take_plan_options(arguments)
    if problems:
        print_problems(problems)
        return 2
    if isinstance(options, ScheduleOptions):
        return draw(options)
    from hmt_ds.planning.compare import comparison
    from hmt_ds.reporting.tables import comparison_table

    console(WIDTH).print(comparison_table(comparison(options), options))
    return 0


def draw(options: ScheduleOptions) -> int:
    """The schedule of equal stages."""
    shape = (options.stages, options.segments, options.micro_batches)
    together = summaries_together(*shape, UNIT.summary / UNIT.main) if options.mode == "hmt" else 1
    costs = replace(UNIT, summary=UNIT.summary * together)
    schedule = pipeline_schedule(*shape, mode=options.mode, together=together)
    timeline = simulate(schedule, Machine.uniform(costs, options.stages), options.mode)
    bound = lower_bound(*shape, mode=options.mode, costs=UNIT)
    out = console(WIDTH)
    for line in timeline_lines(timeline.stages, out.width):
        out.print(line)
    out.print("\n".join(facts(timeline, bound, together)), highlight=False, soft_wrap=True)
    if options.picture is None:
        return 0
    from hmt_ds.reporting.plots import plot_schedule

    title = f"{options.stages} stages, {options.segments} segments, {options.micro_batches} micro-batches"
    try:
        plot_schedule(timeline.stages, f"{title}: time {timeline.time:g}, bound {bound:g}", options.picture)
    except OSError as error:
        print_problems([f"--picture: {error}"])
        return 2
    out.print(f"picture      {options.picture}", highlight=False, markup=False, soft_wrap=True)
    return 0


def facts(timeline: Timeline, bound: float, together: int) -> list[str]:
    """Time, bound, bubble and what is kept, a line for each."""
    over = timeline.time / bound - 1
    bubbles, kept = sorted(timeline.bubbles), sorted(timeline.kept_items)
    grouped = [f"summaries    those of {together} micro-batches are read together"] if together > 1 else []
    return [
        f"time         {timeline.time:g}, where a main pass takes {UNIT.main:g} forward, a summary {UNIT.summary:g}, "
        f"backward {UNIT.backward:g} times that",
        *grouped,
        f"lower bound  {bound:g}, which no schedule beats; " + ("met" if over < 1e-9 else f"this is {over:.1%} above"),
        f"bubble       {between(f'{bubbles[0]:.1%}', f'{bubbles[-1]:.1%}')} of a stage's time",
        f"kept inputs  {between(str(kept[0]), str(kept[-1]))} on a stage at its peak",
    ]


def between(low: str, high: str) -> str:
    """One number, or two."""
    return low if low == high else f"{low} to {high}"


def console(most: int) -> Console:
    """As wide as the terminal, and as that where there is none."""
    out = Console()
    return Console(width=min(most, out.width) if out.is_terminal else most)
