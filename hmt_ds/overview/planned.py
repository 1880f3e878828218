"""Compare a run's measured memory and speed with the planner's estimate for the GPUs that it ran on."""

from statistics import median

from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.load import load_recipe
from hmt_ds.overview.page import Table
from hmt_ds.overview.run_folder import RunFolder


def planned_table(run: RunFolder) -> Table | None:
    """Return a table of a run's estimated memory by part (GiB) and speed (tokens/s), beside the measured ones.

    Args:
        run: the run's folder.

    Returns:
        The table; None for a run on CPUs, on GPUs that the planner does not know, or of a model of unknown size.
    """
    starts = run.events("start")
    if not starts or not run.rows:
        return None
    from hmt_ds.planning.activations import GIB
    from hmt_ds.planning.cluster import fleet_of, gpu_named

    found = starts[-1]["environment"]
    gpu = gpu_named(found["devices"][0])
    if gpu is None:
        return None
    file = run.folder / "recipe.yaml"
    from hmt_ds.planning.recipe_plan import plan_recipe  # imports torch and transformers, which takes seconds

    try:
        fleet = fleet_of(found["ranks"], gpu, len(found["machines"]), 50e9)
        own = plan_recipe(load_recipe(file), file, fleet).own
    except (ConfigError, ValueError):
        return None
    parts = [[name, f"{size / GIB:,.2f} GiB", ""] for name, size in own.memory.parts.items()]
    peak = max(row["peak_memory_gib"] or 0.0 for row in run.rows)
    speed = median(row["tokens_per_second"] for row in run.rows)
    return Table(
        [f"{run.name} on {fleet}", "planned", "measured"],
        [
            *parts,
            ["peak of a GPU", f"{own.memory.peak / GIB:,.2f} GiB", f"{peak:,.2f} GiB on rank 0"],
            ["tokens/s per GPU, longest windows", f"{own.tokens_per_second:,.0f}", f"{speed:,.0f} (median of all)"],
        ],
    )
