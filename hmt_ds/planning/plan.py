"""``hmt-ds plan``: estimate a recipe, draw a pipeline schedule, or compare pipelines and ZeRO on clusters."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from hmt_ds.parallel.pipeline.schedule import UNIT_COSTS, pipeline_schedule, summary_group_size
from hmt_ds.planning.lower_bound import lower_bound
from hmt_ds.planning.plan_options import PlanOptions, RecipeOptions, ScheduleOptions
from hmt_ds.planning.plan_source import read_source
from hmt_ds.planning.simulate import Machine, Timeline, simulate
from hmt_ds.reporting.pipeline_timeline import timeline_lines
from hmt_ds.reporting.progress import print_problems

WIDTH = 100
TABLES = 132  # columns of the tables of a plan


def plan(source: str | None, options: PlanOptions, overrides: Sequence[str] = ()) -> int:
    """Run `hmt-ds plan`: print the estimate of a recipe, a pipeline schedule, or a comparison of clusters.

    Args:
        source: path of a recipe, or the name of a known model; None for a schedule or a comparison.
        options: options for a recipe, a schedule or a comparison; their class decides which of the three is printed.
        overrides: keys of the recipe to change, such as ``["--training.batch_size", "4"]``.

    Returns:
        Exit code: 0, or 2 if a picture cannot be written.

    Raises:
        ConfigError: with a line for each problem of the recipe or the options.
    """
    if isinstance(options, RecipeOptions):
        return plan_and_fit(str(source), options, list(overrides))
    if isinstance(options, ScheduleOptions):
        return draw(options)
    from hmt_ds.planning.compare import comparison  # imports torch, which a schedule does not need
    from hmt_ds.reporting.tables import comparison_table

    console(WIDTH).print(comparison_table(comparison(options), options))
    return 0


def plan_and_fit(source: str, options: RecipeOptions, overrides: list[str]) -> int:
    """Print the estimate of a recipe, and with ``--fit`` write the recipe with the fastest layout that fits.

    Args:
        source: path of a recipe, or the name of a known model.
        options: options of `hmt-ds plan RECIPE`.
        overrides: keys of the recipe to change, such as ``["--training.batch_size", "4"]``.

    Returns:
        The exit code, 0.

    Raises:
        ConfigError: with a line for each problem of the recipe or the options.
    """
    recipe, values = read_source(source, overrides)
    from hmt_ds.planning.fit import write_fitted  # imports torch and transformers
    from hmt_ds.planning.plan_tables import plan_lines, plan_tables
    from hmt_ds.planning.recipe_plan import plan_recipe

    found = plan_recipe(recipe, Path(source), options.fleet)
    out = console(TABLES)
    for table in plan_tables(found):
        out.print(table)
    for line in plan_lines(found):
        out.print(line, highlight=False, markup=False, soft_wrap=True)
    if options.fit is None:
        train = f", or hmt-ds train {source} --dry-run" if Path(source).exists() else ""
        print(f"next         hmt-ds plan {source} --gpus {options.gpus} --fit FILE{train}")
        return 0
    write_fitted(values, found, options.fit)
    print(f"recipe       {options.fit}\nnext         hmt-ds train {options.fit} --dry-run")
    return 0


def draw(options: ScheduleOptions) -> int:
    """Draw a pipeline schedule of equally fast stages in the terminal, and as a picture if ``--picture`` asks for one.

    Args:
        options: options of `hmt-ds plan --schedule`.

    Returns:
        Exit code: 0, or 2 if the picture cannot be written.
    """
    shape = options.shape
    group = summary_group_size(*shape, UNIT_COSTS.summary / UNIT_COSTS.segment) if options.mode == "hmt" else 1
    costs = replace(UNIT_COSTS, summary=UNIT_COSTS.summary * group)
    schedule = pipeline_schedule(*shape, mode=options.mode, summary_group=group)
    timeline = simulate(schedule, Machine.uniform(costs, options.stages), options.mode)
    bound = lower_bound(*shape, mode=options.mode, costs=UNIT_COSTS)
    out = console(WIDTH)
    for line in timeline_lines(timeline.stages, out.width):
        out.print(line)
    out.print("\n".join(facts(timeline, bound, group)), highlight=False, soft_wrap=True)
    if options.picture is None:
        return 0
    from hmt_ds.reporting.plots import plot_schedule  # imports matplotlib

    title = f"{shape[0]} stages, {shape[1]} segments, {shape[2]} micro-batches"
    try:
        plot_schedule(timeline.stages, f"{title}: time {timeline.time:g}, bound {bound:g}", options.picture)
    except OSError as error:
        print_problems([f"--picture: {error}"])
        return 2
    out.print(f"picture      {options.picture}", highlight=False, markup=False, soft_wrap=True)
    return 0


def facts(timeline: Timeline, bound: float, summary_group: int) -> list[str]:
    """Return lines of text about a simulated pipeline schedule: duration, lower bound, pipeline bubble, stashed inputs.

    Args:
        timeline: the simulated schedule.
        bound: lower bound on the duration, in the timeline's unit of time.
        summary_group: number of micro-batches that one pass computes retrieval queries for.
    """
    above = timeline.time / bound - 1
    bubbles, kept = sorted(timeline.bubbles), sorted(timeline.stashed_inputs)
    grouped = [f"summaries    {summary_group} micro-batches per summary pass"] if summary_group > 1 else []
    return [
        f"time         {timeline.time:g}; forward passes take {UNIT_COSTS.segment:g} (segment) and "
        f"{UNIT_COSTS.summary:g} (summary), backward passes {UNIT_COSTS.backward:g} times that",
        *grouped,
        f"lower bound  {bound:g} for any schedule; " + ("met" if above < 1e-9 else f"this one is {above:.1%} above"),
        f"bubble       {between(f'{bubbles[0]:.1%}', f'{bubbles[-1]:.1%}')} of a stage's time",
        f"kept inputs  {between(str(kept[0]), str(kept[-1]))} per stage, at its peak",
    ]


def between(low: str, high: str) -> str:
    """Format a range such as "2 to 5"; a single number if both ends are equal.

    Args:
        low: the lower end, formatted.
        high: the upper end, formatted.
    """
    return low if low == high else f"{low} to {high}"


def console(most: int) -> Console:
    """Return a rich console as wide as the terminal, but at most ``most`` columns; without a terminal, ``most``
    columns.

    Args:
        most: the largest width in columns.
    """
    out = Console()
    return Console(width=min(most, out.width) if out.is_terminal else most)
