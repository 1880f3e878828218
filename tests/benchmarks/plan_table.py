"""The planner's estimates beside what was measured: python tests/benchmarks/plan_table.py.

Its constants (hmt_ds/planning/step_time.py and memory_parts.py) were fitted to the first six rows alone. Measured
figures are those of RESULTS.md, found by the line under which the row is named.
"""

from typing import NamedTuple

from transformers import AutoConfig

from hmt_ds.memory import MemorySettings
from hmt_ds.planning.activations import GIB
from hmt_ds.planning.cluster import GPUS, fleet_of
from hmt_ds.planning.estimate import estimate
from hmt_ds.planning.layout import Layout, Work
from hmt_ds.planning.model_size import ModelSize, count

LLAMA = {"model_type": "llama", "vocab_size": 32000, "num_attention_heads": 32}
WIDE = LLAMA | {"hidden_size": 4096, "intermediate_size": 11008}
SHAPES = {
    "1.1B": LLAMA | {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_key_value_heads": 4},
    "4.3B": WIDE | {"num_hidden_layers": 20},
    "6.8B": WIDE | {"num_hidden_layers": 32},
}


class Case(NamedTuple):
    """A measured configuration.

    Attributes:
        name: where RESULTS.md has it, and what it is.
        shape: a name of SHAPES.
        gpus: like 2xH100.
        layout: the layout.
        depth: segments of a window.
        rows: rows of an optimizer step.
        length: fresh tokens of a segment.
        tokens_per_second: measured, per GPU; None if it was not. Of whole steps, but for full attention of 16k and 64k
            tokens, where only forward and backward passes were.
        gib: measured peak, allocated; None if it was not.
        train: the recipe's model.train.
        mode: the memory's mode.
    """

    name: str
    shape: str
    gpus: str
    layout: Layout
    depth: int
    rows: int
    length: int = 1024
    tokens_per_second: float | None = None
    gib: float | None = None
    train: str = "whole"
    mode: str = "hmt"


BY_LAYER = Layout(2, "step", 1, recompute="segment+layer")
OFFLOADED = Layout(3, "segment", 8, recompute="segment+layer", offloaded=0.7)
FITTED = [
    Case("28 Nov, new", "1.1B", "1xH100", Layout(2, "step", 8), 8, 8, 1024, 39015, 62.3),
    Case("23 Nov, tuned: bench", "1.1B", "1xH100", Layout(2, "step", 1), 16, 1, 990, 28228, None),
    Case("27 Nov, depth 8: ZeRO-2", "4.3B", "2xH100", Layout(2, "step", 4), 8, 32, 1024, 10778, 70.1),
    Case("27 Nov, depth 8: ring", "4.3B", "2xH100", Layout(1, "step", 4, 2, 2), 8, 32, 1024, 10305, 64.2),
    Case(
        "23 Nov, H200: A, ZeRO-3 segment",
        "6.8B",
        "2xH200",
        Layout(3, "segment", 4, recompute="segment", leaf_layers=4),
        8,
        8,
        1024,
        4842,
        78.1,
    ),
    Case("24 Nov, 7 parts of 10 on the host", "6.8B", "1xH100", OFFLOADED, 8, 8, 1024, 2812, 56.9),
]
HELD_OUT = [
    Case("23 Nov, depth 32", "1.1B", "1xH100", Layout(2, "step", 1), 32, 1, 990, 28539, 77.3),
    Case("23 Nov, depth 64", "1.1B", "1xH100", Layout(2, "step", 1), 64, 1, 1024, 28667, 76.4),
    Case("24 Nov, depth 256", "1.1B", "1xH100", Layout(2, "step", 1), 256, 1, 1024, 28765, 68.9),
    Case("23 Nov, depth 1024", "1.1B", "1xH100", Layout(2, "step", 1), 1024, 1, 1024, 28632, 70.7),
    Case("23 Nov, depth 1024, LoRA", "6.8B", "1xH100", Layout(2, "step", 1), 1024, 1, 1024, 7215, 71.2, train="lora"),
    Case(
        "23 Nov, one kept, depth 512",
        "1.1B",
        "1xH100",
        Layout(2, "step", 1, recompute="segment", cuda_graphs="never"),
        512,
        1,
        1024,
        14300,
        26.88,
    ),
    Case("23 Nov, full attention, 16k", "1.1B", "1xH100", BY_LAYER, 1, 1, 16 * 1024, 32566, 26.7, mode="backbone"),
    Case("23 Nov, full attention, 64k", "1.1B", "1xH100", BY_LAYER, 1, 1, 64 * 1024, 13227, 28.6, mode="backbone"),
    Case("24 Nov, full attention, 256k", "1.1B", "1xH100", BY_LAYER, 1, 1, 256 * 1024, 3710, 58.9, mode="backbone"),
    Case("27 Nov, depth 32: ZeRO-2", "4.3B", "2xH100", Layout(2, "step", 4), 32, 32, 1024, 10753, 70.1),
    Case("27 Nov, depth 32: ring", "4.3B", "2xH100", Layout(1, "step", 4, 2, 2), 32, 32, 1024, 10314, 66.5),
    Case("25 Nov, ZeRO-3 step, depth 8", "4.3B", "2xH100", Layout(3, "step", 4), 8, 32, 1024, 10467, 65.1),
    Case("25 Nov, ZeRO-3 segment", "4.3B", "2xH100", Layout(3, "segment", 4, leaf_layers=5), 8, 32, 1024, 7352, 62.6),
    Case("23 Nov, H200: A, ZeRO-2 step", "6.8B", "2xH200", Layout(2, "step", 4), 8, 8, 1024, 6854, 110.8),
    Case("23 Nov, H200: B, ZeRO-3 step", "6.8B", "2xH200", Layout(3, "step", 4), 8, 8, 1024, 6429, 113.9),
    Case(
        "23 Nov, H200: A, ZeRO-2 segment",
        "6.8B",
        "2xH200",
        Layout(2, "segment", 4, recompute="segment"),
        8,
        8,
        1024,
        6150,
        82.0,
    ),
    Case(
        "23 Nov, H200: C, ZeRO-2 segment",
        "6.8B",
        "2xH200",
        Layout(2, "segment", 8, recompute="segment"),
        8,
        16,
        1024,
        6734,
        98.7,
    ),
    Case(
        "23 Nov, H200: C, ZeRO-3 segment",
        "6.8B",
        "2xH200",
        Layout(3, "segment", 8, recompute="segment", leaf_layers=4),
        8,
        16,
        1024,
        6324,
        94.4,
    ),
]


def size_of(case: Case, settings: MemorySettings) -> ModelSize:
    """Count the parameters of a case's model."""
    values = dict(SHAPES[case.shape])
    return count(AutoConfig.for_model(values.pop("model_type"), **values), settings, case.train)


def planned(case: Case) -> tuple[float, float, int]:
    """Return the planned tokens/s per GPU, peak GiB, and kept segments of a case."""
    number, kind = case.gpus.split("x")
    settings = MemorySettings(case.length, mode=case.mode, sensory_tokens=0 if case.mode == "backbone" else 32)
    work = Work(size_of(case, settings), settings, case.depth, case.rows)
    found = estimate(work, case.layout, fleet_of(int(number), GPUS[kind], None, 50e9))
    spent = found.time.seconds - ("16k" in case.name or "64k" in case.name) * found.time.parts["optimizer"]
    return work.tokens / spent / int(number), found.memory.peak / GIB, found.memory.kept_segments


def errors(case: Case) -> tuple[float, float]:
    """Return the relative errors of speed and memory of a case; 0 for what was not measured."""
    speed, memory, _ = planned(case)
    return speed / (case.tokens_per_second or speed) - 1, memory / (case.gib or memory) - 1


def compared(found: float, measured: float | None, digits: int) -> str:
    """Format an estimate beside a measurement and its error."""
    if measured is None:
        return f"{found:,.{digits}f} | | "
    return f"{found:,.{digits}f} | {measured:,.{digits}f} | {found / measured - 1:+.1%}"


def table() -> str:
    """Return the table in Markdown."""
    lines = ["| | shape, GPUs | rows, depth | kept | tokens/s per GPU, planned | measured | error | ", ""]
    lines[0] += "peak GiB, planned | measured | error |"
    lines[1] = "|" + "---|" * 10
    for title, cases in (("**fitted to**", FITTED), ("**held out**", HELD_OUT)):
        lines.append(f"| {title} |" + " |" * 9)
        for case in cases:
            speed, memory, kept = planned(case)
            figures = [compared(speed, case.tokens_per_second, 0), compared(memory, case.gib, 1)]
            cells = [case.name, f"{case.shape}, {case.gpus}", f"{case.rows} x {case.depth}", f"{kept}", *figures]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
