"""The planner on 8 to 1,024 GPUs beside published figures: python tests/benchmarks/plan_scale.py.

Published are MosaicML's measurements of full attention (mosaicml/llm-foundry, scripts/train/benchmarking/README.md,
commit 061f2c7, "H100 80GB BF16", sequences of 2,048 tokens): PyTorch's FSDP, which shards like ZeRO-3.
"""

from typing import NamedTuple

from transformers import AutoConfig

from hmt_ds.memory import MemorySettings
from hmt_ds.planning.cluster import GPUS, Fleet, fleet_of
from hmt_ds.planning.estimate import Estimate, estimate
from hmt_ds.planning.known_models import KNOWN_MODELS, opt
from hmt_ds.planning.layout import Layout, Work
from hmt_ds.planning.model_size import ModelSize, count
from hmt_ds.planning.search import best_of_each_family

LENGTH = 2048
LINK = 400e9  # eight network cards of 400 Gb/s
ONE_CARD = 50e9


class Published(NamedTuple):
    """A published measurement: rows at a time and in a step, whether layers are checkpointed, tokens/s per GPU."""

    model: str
    width: int
    layers: int
    gpus: int
    rows: int
    batch: int
    by_layer: bool
    tokens_per_second: float


PUBLISHED = [
    Published("7B", 4096, 32, 8, 6, 48, False, 10643),
    Published("13B", 5120, 40, 8, 2, 16, False, 4792),
    Published("13B", 5120, 40, 16, 2, 32, False, 4767),
    Published("13B", 5120, 40, 32, 2, 64, False, 4811),
    Published("13B", 5120, 40, 64, 2, 128, False, 4800),
    Published("30B", 7168, 48, 32, 14, 1344, True, 2308),
    Published("70B", 8192, 80, 32, 2, 1024, True, 882),
    Published("70B", 8192, 80, 64, 8, 2048, True, 1039),
]
OURS = {name: f"meta-llama/Llama-2-{name.lower()}-hf" for name in ("7B", "13B", "70B")}


def sized(values: dict[str, object], settings: MemorySettings) -> ModelSize:
    """Count the parameters of a configuration."""
    values = dict(values)
    return count(AutoConfig.for_model(str(values.pop("model_type")), **values), settings)


def same_work(row: Published) -> tuple[Estimate, str]:
    """Plan the measured work, full attention with the same rows, at the faster way of ZeRO-3 that fits."""
    settings = MemorySettings(LENGTH, mode="backbone", sensory_tokens=0)
    heads = row.width // 128
    values = opt(row.width, row.layers, heads, vocab_size=50432, max_position_embeddings=LENGTH)
    work = Work(sized(values, settings), settings, 1, row.batch)
    fleet = fleet_of(row.gpus, GPUS["H100"], None, LINK)
    ways = [Layout(3, "step", row.rows)]
    ways.append(Layout(3, "segment", row.rows, recompute="segment+layer" if row.by_layer else "segment"))
    found = [estimate(work, layout, fleet) for layout in ways]
    best = min(found, key=lambda one: (not one.memory.fits and not one.memory.tight, one.time.seconds))
    return best, "" if best.memory.fits or best.memory.tight else ", does not fit"


def main() -> None:
    """Print both tables in Markdown."""
    print(
        "| | GPUs | rows at a time | FSDP, published | ZeRO-3, planned | | reduction |\n|---|---|---|---|---|---|---|"
    )
    for row in PUBLISHED:
        found, fits = same_work(row)
        ours, theirs = found.tokens_per_second, row.tokens_per_second
        way = f"{found.layout.reduction}{fits}"
        cells = [row.model, row.gpus, row.rows, f"{theirs:,.0f}", f"{ours:,.0f}", f"{ours / theirs - 1:+.0%}", way]
        print(f"| {' | '.join(map(str, cells))} |")
    print("\n| | GPUs | the fastest with memory that fits | tokens/s per GPU | MFU | the runner-up | |")
    print("|---|---|---|---|---|---|---|")
    settings = MemorySettings(1024)
    for name, full in OURS.items():
        size = sized(KNOWN_MODELS[full], settings)
        for gpus in (8, 64, 256, 1024):
            print(scaled(name, Work(size, settings, 8, 2 * gpus), fleet_of(gpus, GPUS["H100"], None, ONE_CARD)))


def scaled(name: str, work: Work, fleet: Fleet) -> str:
    """Return a line of the second table."""
    found = [one for one in best_of_each_family(work, fleet) if one.memory.fits]
    if not found:
        return f"| {name} | {fleet.count:,} | none fits | | | | |"
    best, *others = found
    cells = [name, f"{fleet.count:,}", best.layout.family, f"{best.tokens_per_second:,.0f}", f"{best.mfu:.0%}"]
    other = [others[0].layout.family, f"{others[0].tokens_per_second:,.0f}"] if others else ["", ""]
    return f"| {' | '.join([*cells, *other])} |"


if __name__ == "__main__":
    main()
