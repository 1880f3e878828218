"""The estimate of a recipe as tables and lines for the terminal."""

from rich.table import Table

from hmt_ds.planning.activations import GIB
from hmt_ds.planning.estimate import Estimate
from hmt_ds.planning.recipe_plan import RecipePlan
from hmt_ds.planning.search import why_it_loses

GB = 1e9


def plan_tables(found: RecipePlan) -> list[Table]:
    """Return the two tables of `hmt-ds plan`: GiB of GPU memory by part beside seconds of a step by activity; and the
    fastest layouts (ZeRO stage, pipeline stages, offloading) with memory and speed of each.

    Args:
        found: the estimates of a recipe.
    """
    return [memory_table(found), layout_table(found)]


def memory_table(found: RecipePlan) -> Table:
    """Return a table of a recipe's memory by part in GiB, beside the seconds of an optimizer step by activity.

    Args:
        found: the estimates of a recipe.
    """
    own = found.own
    table = Table(title=f"{found.model}, as the recipe is: {describe(own)}", title_justify="left")
    for column in ("memory per GPU", "GiB", "time of a step", "seconds", "share"):
        table.add_column(column, justify="left" if column in ("memory per GPU", "time of a step") else "right")
    sizes = [(name, f"{size / GIB:,.1f}") for name, size in own.memory.parts.items() if size >= 0.05 * GIB]
    sizes += [("peak", f"{own.memory.peak / GIB:,.1f} of {own.memory.most / GIB:,.1f}")]
    sizes += [("host memory per node", f"{own.memory.host / GIB:,.0f} of {own.memory.host_most / GIB:,.0f}")]
    seconds = own.time.seconds
    times = [(name, f"{spent:,.2f}", f"{spent / seconds:.0%}") for name, spent in own.time.parts.items()]
    times += [("step", f"{seconds:,.2f}", "")]
    for n in range(max(len(sizes), len(times))):
        size, time = sizes[n] if n < len(sizes) else ("", ""), times[n] if n < len(times) else ("", "", "")
        table.add_row(*size, *time)
    return table


def layout_table(found: RecipePlan) -> Table:
    """Return a table of the best layout of each kind over the GPUs, fastest first, each with what makes it slower or
    larger.

    Args:
        found: the estimates of a recipe.
    """
    title = f"layouts on {found.fleet}, {found.own.work.rows} rows in an optimizer step"
    table = Table(title=title, title_justify="left")
    for column in ("layout", "rows", "windows", "GiB", "tokens/s/GPU", "MFU", "why not"):
        table.add_column(column, justify="left" if column in ("layout", "why not") else "right")
    best = found.others[0]
    for one in found.others:
        why = why_it_loses(one, best) or ("the fastest that fits" if one.memory.fits else "")
        table.add_row(*row(one), why)
    return table


def row(one: Estimate) -> list[str]:
    """Return the cells of one layout's row in the table of layouts of `hmt-ds plan`.

    They are name, rows at a time, gradient accumulation, memory (GiB) and tokens/s per GPU.

    Args:
        one: the estimate of the layout.
    """
    layout = one.layout
    name = layout.family + (", by layer" if layout.recompute == "segment+layer" and not layout.offloaded else "")
    rows = f"{layout.rows}" + (f" x {layout.micro_batches}" if layout.stages > 1 else "")
    figures = [f"{one.tokens_per_second:,.0f}", f"{one.mfu:.0%}"] if one.memory.fits else ["", ""]
    return [name, rows, f"{layout.windows(one.work, one.fleet.count)}", f"{one.memory.peak / GIB:,.0f}", *figures]


def describe(one: Estimate) -> str:
    """Describe a layout over GPUs in a few words: kind, rows at a time, number of segments that keep their activations.

    Args:
        one: the estimate of the layout.
    """
    kept = f"{one.memory.kept_segments} of {one.work.depth} segments kept" if one.layout.stages == 1 else ""
    return ", ".join(part for part in (one.layout.family, f"{one.layout.rows} rows at a time", kept) if part)


def plan_lines(found: RecipePlan) -> list[str]:
    """Return the lines below the tables of `hmt-ds plan`: model, FLOPs, traffic, tokens/s, hours, warnings.

    Args:
        found: the estimates of a recipe.
    """
    own, size = found.own, found.size
    flops = own.useful_flops
    within, between = own.time.within / GB, own.time.between / GB
    lines = [
        f"model        {size.parameters / 1e9:,.2f} B parameters, {size.trained / 1e9:,.3g} B trained",
        f"a step       {own.work.tokens:,} fresh tokens, {flops / 1e15:,.3g} PFLOP useful, "
        f"{within:,.1f} GB into each GPU, {between:,.1f} GB into each node",
        f"speed        {own.tokens_per_second:,.0f} tokens/s per GPU, {own.tokens_per_second * found.fleet.count:,.0f} "
        f"in all, MFU {own.mfu:.0%} of the datasheet",
        f"the run      {found.tokens:,.3g} tokens in {found.hours:,.1f} hours, "
        f"{found.hours * found.fleet.count:,.0f} GPU-hours, without evaluations and checkpoints",
    ]
    if not own.memory.fits:
        lines.append(f"warning      the recipe as it is: {why_it_loses(own, found.others[0])}")
    lines += [f"warning      {line}" for line in found.warnings]
    return lines
