"""The tables and notes that `hmt-ds bench` prints."""

from collections.abc import Iterator
from typing import Any

from rich.table import Table

Numbers = dict[str, Any]  # a part of the JSON file that `hmt-ds bench --json` writes
GIB = 2**30
PARTS = {
    "weights_bytes": "weights",
    "gradients_bytes": "gradients",
    "optimizer_states_bytes": "optimizer states",
    "cuda_graphs_bytes": "activations in CUDA graphs",
    "activations_bytes": "activations and the rest",
}


def bench_tables(result: Numbers) -> Iterator[Table | str]:
    """Yield the tables of a benchmark (run, speed, phases, memory), with notes on how their numbers are counted.

    Args:
        result: content of the benchmark's JSON file.
    """
    yield run_table(result)
    yield speed_table(result["speed"])
    yield formulas(result)
    if pipeline := result["pipeline"]:
        yield stages_table(pipeline, result["phase_segments"])
        yield bubble_notes()
    else:
        yield phase_table(result["phase_seconds"], result["phase_segments"])
    yield memory_table(result["memory"], result["run"]["pipelines"] if pipeline else None)


def reference_tables(result: Numbers) -> Iterator[Table | str]:
    """Yield a table that compares hmt_ds with HMT-pytorch, and notes on the comparison.

    Args:
        result: content of the benchmark's JSON file.
    """
    yield reference_table(result)
    yield reference_notes(result)


def run_table(result: Numbers) -> Table:
    """Return the table of what a benchmark ran: model, ranks, segments and tokens per step, and resolved settings.

    Args:
        result: content of the benchmark's JSON file.
    """
    run, plan, pipeline = result["run"], result["plan"], result["pipeline"]
    table = Table("", "", title="what was run", show_header=False)
    parameters, trained = (run[name] / 1e6 for name in ("parameters", "trained_parameters"))
    table.add_row("parameters", f"{parameters:,.1f}M, {trained:,.1f}M trained")
    table.add_row("ranks", f"{run['ranks']} x {run['device']}, {run['precision']}, ZeRO-{run['zero_stage']}")
    window = f"{run['bptt_depth_segments']} segments of {run['segment_length_tokens']} tokens"
    windows = "" if run["windows_per_step"] == 1 else f", {run['windows_per_step']} windows a step"
    of = "pipeline" if pipeline else "rank"
    table.add_row("window", f"{window}, batch {run['batch_size']} per {of}{windows}, {run['mode']}")
    documents = "each window begins new documents" if run["fresh"] else "memories are carried on"
    table.add_row("tokens", f"random, {documents}" if run["tokens"] == "random" else "the recipe's data")
    table.add_row("compute", ", ".join(f"{name} {value}" for name, value in result["compute"].items()))
    if pipeline:
        layers = ", ".join(map(str, pipeline["layers"]))
        parts = f"{pipeline['micro_batches']} micro-batches a window"
        if pipeline["summary_group_size"] > 1:
            parts += f", summaries of {pipeline['summary_group_size']} together"
        table.add_row("pipeline", f"{run['pipelines']} x {pipeline['stages']} stages of {layers} layers, {parts}")
        kept = ", ".join(map(str, pipeline["kept_graphs"]))
        table.add_row(
            "kept", f"{kept} autograd graphs of {pipeline['forward_passes']} forward passes; the rest is recomputed"
        )
    else:
        kept = f"{plan['kept_segments']} segments, {plan['kept_summaries']} batches of summaries"
        table.add_row("kept", f"{kept}; summaries are read {plan['summary_segments']} at a time")
    return table


def speed_table(speed: dict[str, Numbers]) -> Table:
    """Return the table of rates per GPU (tokens/s, FLOP/s, fractions of the peak), of whole steps and of passes alone.

    Args:
        speed: rates by name, for ``whole_step`` and ``forward_and_backward``.
    """
    table = Table(title="speed per GPU, the median step")
    for column in ("", "whole step", "forward and backward"):
        table.add_column(column, justify="right" if column else "left")
    names = {"seconds": "seconds", "tokens_per_second_per_gpu": "tokens/s (fresh)"}
    names |= {"useful_tflops_per_second": "TFLOP/s, useful", "executed_tflops_per_second": "TFLOP/s, executed"}
    for share in ("MFU", "HFU"):
        names |= {f"{share.lower()}_{source}": f"{share} ({source} rate)" for source in ("datasheet", "measured")}
    for key, name in names.items():
        if key in speed["whole_step"]:
            table.add_row(name, *(number(speed[column][key], key) for column in ("whole_step", "forward_and_backward")))
    return table


def number(value: float, key: str) -> str:
    """Format a rate for a table cell: percent, seconds with three decimals, or a rounded number.

    Args:
        value: the rate.
        key: name of the rate in the benchmark's JSON file, which tells its unit: ``mfu...``, ``hfu...``, ``seconds``,
            or another.
    """
    if key.startswith(("mfu", "hfu")):
        return f"{value:.1%}"
    if key == "seconds":
        return f"{value:.3f}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:,.3g}" if value < 1 else f"{value:,.1f}"


def formulas(result: Numbers) -> str:
    """Return a note on how the FLOPs of a benchmark are counted: the formulas with their numbers filled in.

    Args:
        result: content of the benchmark's JSON file.
    """
    flops, run, peaks = result["flops"], result["run"], result["peak_flops_per_second"]
    again = flops["repeated_flops_per_window"] / flops["useful_flops_per_window"]
    lines = [
        "forward and backward: the step without its phases reduce and step; with compute.reduction segment the "
        "reduction is part of the backward passes, and stays in.",
        f"useful FLOPs of a fresh token: (4 x {run['parameters']:,} parameters + 2 x {run['trained_parameters']:,} "
        f"trained) x positions read for it = {flops['useful_flops_per_token'] / 1e9:,.3g} GFLOP. Attention scores and "
        "recomputation are not counted.",
        "MFU = useful FLOP/s / the device's rate. HFU = executed FLOP/s / the same rate; executed: useful + 2 x "
        f"{flops['layer_parameters']:,} parameters of the layers x positions read again, here {again:.1%} more.",
    ]
    if peaks:
        known = ", ".join(f"{rate / 1e12:,.0f} TFLOP/s ({source})" for source, rate in sorted(peaks.items()))
        lines.append(f"rates of the device, dense bf16: {known}; measured: 8192^3 on random numbers, in this run.")
    return "\n".join(lines)


def phase_table(seconds: dict[str, float], segments: int) -> Table:
    """Return the table of the seconds of each phase of a training step (forward, backward, reduce, ...), with its
    share.

    Args:
        seconds: seconds by phase, such as ``forward``.
        segments: number of segments that gradients flow through in the measured steps.
    """
    table = Table(title=f"time by phase, in steps of {segments} segments")
    for column in ("phase", "seconds", "share"):
        table.add_column(column, justify="left" if column == "phase" else "right")
    whole = sum(seconds.values())
    for name, value in seconds.items():
        table.add_row(name, f"{value:.3f}", f"{value / whole:.1%}")
    table.add_row("together", f"{whole:.3f}", "")
    return table


def stages_table(pipeline: Numbers, segments: int) -> Table:
    """Return the table of each pipeline stage's seconds by phase, with its measured and simulated bubbles.

    Args:
        pipeline: the section ``pipeline`` of the benchmark's JSON file.
        segments: number of segments that gradients flow through in the measured steps.
    """
    table = Table(title=f"seconds by phase and stage, in steps of {segments} segments")
    table.add_column("phase")
    for stage in range(pipeline["stages"]):
        table.add_column(f"stage {stage}", justify="right")
    for name in pipeline["phase_seconds"][0]:
        table.add_row(name, *(f"{seconds[name]:.3f}" for seconds in pipeline["phase_seconds"]))
    table.add_section()
    table.add_row("bubble", *(f"{share:.1%}" for share in pipeline["bubbles"]))
    table.add_row("simulated with these times", *(f"{share:.1%}" for share in pipeline["simulated_bubbles"]))
    table.add_row("of the schedule", *(f"{share:.1%}" for share in pipeline["schedule_bubbles"]))
    return table


def bubble_notes() -> str:
    """Return a note for users on how to read the benchmark's table of pipeline stages and their bubbles."""
    return (
        "backward: with what is computed again. wait: for a neighbour's message. A stage that is done with its windows "
        "before others waits for them in reduce and step.\n"
        "bubble: the share of the windows' time that a stage does not work; simulated: the schedule's, with what its "
        "items took on each stage and messages that take no time; of the schedule: with equal stages too, and "
        "summaries by their positions."
    )


def memory_table(memory: Numbers, pipelines: int | None) -> Table:
    """Return the table of a benchmark's peak memory by part in GiB, of the rank that uses most.

    On CPUs the peak is resident memory, and the parts do not add up to it.

    Args:
        memory: the section ``memory`` of the benchmark's JSON file: bytes by part, with rank and phase of the peak.
        pipelines: number of pipelines; None without pipeline stages.
    """
    at, peak, rank = memory["peak_phase"], memory["peak_bytes"], memory["rank"]
    stage = f" (stage {rank // pipelines})" if pipelines else ""
    table = Table(title=f"memory of the fullest rank, {rank}{stage}, in a step")
    for column in ("", "GiB", "share"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row(f"peak, in phase {at}" if at else "most that was resident", f"{peak / GIB:.2f}", "")
    for key, name in PARTS.items():
        if memory[key] is not None:
            table.add_row(name, f"{memory[key] / GIB:.2f}", f"{memory[key] / peak:.1%}" if at else "")
    if at:
        table.add_row("held by torch, fragments included", f"{memory['reserved_bytes'] / GIB:.2f}", "")
        table.add_row("outside of torch: CUDA, NCCL", f"{memory['outside_bytes'] / GIB:.2f}", "")
    return table


def reference_table(result: Numbers) -> Table:
    """Return the table of a benchmark that compares hmt_ds and HMT-pytorch on the same work: tokens/s and peak GiB.

    Args:
        result: content of the benchmark's JSON file.
    """
    ours, theirs = result["speed"]["forward_and_backward"], result["reference"]
    table = Table(title="forward and backward, beside HMT-pytorch")
    for column in ("", "tokens/s", "peak GiB"):
        table.add_column(column, justify="right" if column else "left")
    key, peak = "tokens_per_second_per_gpu", result["memory"].get("forward_backward_without_optimizer_bytes")

    def gib(size: int | None) -> str:
        return "-" if size is None else f"{size / GIB:.2f}"

    table.add_row("hmt_ds", f"{ours[key]:,.0f}", gib(peak))
    if theirs["out_of_memory"]:
        table.add_row("HMT-pytorch", "out of memory", f"> {gib(theirs['peak_bytes'])}")
        return table
    table.add_row("HMT-pytorch", f"{theirs[key]:,.0f}", gib(theirs["peak_bytes"]))
    less = f"{peak / theirs['peak_bytes']:.2f} x" if peak else "-"
    table.add_row("ratio", f"{ours[key] / theirs[key]:.2f} x", less)
    return table


def reference_notes(result: Numbers) -> str:
    """Return a note on what hmt_ds and HMT-pytorch have in common in a benchmark, and what differs.

    Args:
        result: content of the benchmark's JSON file.
    """
    run, option = result["run"], result["reference"]["segment_length_option_tokens"]
    return (
        "The same backbone and windows. hmt_ds: loss on every token, without its phases reduce and step, peak of the "
        "other phases without optimizer states. HMT-pytorch: loss on the last segment only, gradients in bf16, no "
        f"optimizer. Its segment_size is {run['segment_length_tokens']} fresh tokens as ours; its command line would "
        f"say --segment_length {option}, for that counts sensory tokens and prompts."
    )
