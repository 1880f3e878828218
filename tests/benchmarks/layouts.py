"""Layouts of large models over the GPUs of a machine: predict them, or run and compare them with the prediction.

    python tests/benchmarks/layouts.py                          the predictions of PLAN.md, without a GPU
    python tests/benchmarks/layouts.py "2 H200" FOLDER          run those of one machine, one `hmt-ds bench` each
    python tests/benchmarks/layouts.py "2 H200" FOLDER 0 3      run two of them, by their numbers in the table

FOLDER gets a log and a JSON file of each run. A run whose JSON file is there is not repeated, so a call that was cut
off can go on. On "2 x 2 H100" two pairs of GPUs act as machines, with TCP between them: measure its bandwidth first.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from transformers import AutoConfig

from hmt_ds.memory import MemorySettings
from hmt_ds.planning.activations import GIB
from hmt_ds.planning.cluster import GPUS, Fleet, fleet_of
from hmt_ds.planning.estimate import Estimate, estimate
from hmt_ds.planning.known_models import KNOWN_MODELS, llama_like
from hmt_ds.planning.layout import Work
from hmt_ds.planning.model_size import count
from hmt_ds.planning.search import candidates, order

SHAPES = {
    "4.3B": llama_like("llama", 32000, 4096, 11008, 20, 32, 32),
    "6.8B": llama_like("llama", 32000, 4096, 11008, 32, 32, 32),
    "8B": KNOWN_MODELS["meta-llama/Llama-3.1-8B"],
    "13B": KNOWN_MODELS["meta-llama/Llama-2-13b-hf"],
    "34B": KNOWN_MODELS["01-ai/Yi-34B"],
}
LENGTH = 1024
RECIPE = "launch/recipes/bench-6.8b.yaml"
SECONDS = 400  # at most, of a run


class Question(NamedTuple):
    """Which layout of a model is the fastest: its shape, the depth of backpropagation, and rows of a step."""

    shape: str
    depth: int
    rows: int


H100, H200 = GPUS["H100"], GPUS["H200"]
FIVE = [Question("8B", 8, 128), Question("8B", 32, 128), Question("13B", 8, 128), Question("13B", 32, 128)]
MACHINES: dict[str, tuple[Fleet, list[Question]]] = {
    "2 H200": (
        fleet_of(2, H200, 1, 50e9),
        [Question("6.8B", 8, 32), Question("6.8B", 32, 32), Question("13B", 8, 32)],
    ),
    "2 H100": (fleet_of(2, H100, 1, 50e9), [Question("4.3B", 8, 32)]),
    "4 H100": (fleet_of(4, H100, 1, 50e9), [Question("4.3B", 8, 64), Question("8B", 8, 64), Question("8B", 32, 64)]),
    "2 x 2 H100, 1 GB/s": (fleet_of(4, H100, 2, 1e9), [Question("4.3B", 8, 64)]),
    "2 x 2 H100, 4 GB/s": (fleet_of(4, H100, 2, 4e9), [Question("4.3B", 8, 64)]),
    "8 H100": (fleet_of(8, H100, 1, 50e9), [*FIVE, Question("34B", 8, 128)]),
    "8 H200": (fleet_of(8, H200, 1, 50e9), [*FIVE, Question("34B", 8, 128)]),
}


def answers(machine: str) -> Iterator[tuple[Question, Estimate]]:
    """Yield the best layout of each family without offloading that fits, for each question put to a machine."""
    fleet, questions = MACHINES[machine]
    for question in questions:
        values = dict(SHAPES[question.shape])
        settings = MemorySettings(LENGTH)
        size = count(AutoConfig.for_model(str(values.pop("model_type")), **values), settings)
        work = Work(size, settings, question.depth, question.rows)
        layouts = sorted((one for one in candidates(work, fleet) if not one.offloaded), key=lambda one: one.family)
        for _, family in groupby(layouts, lambda one: one.family):
            best = min((estimate(work, layout, fleet) for layout in family), key=order)
            if best.memory.fits:
                yield question, best


def arguments(question: Question, best: Estimate) -> list[str]:
    """Return the arguments of `hmt-ds bench` that measure a layout."""
    layout, gpus = best.layout, best.fleet.count
    rows = layout.rows * layout.micro_batches
    values = {f"model.source.{key}": value for key, value in SHAPES[question.shape].items()}
    values |= {
        "model.source.max_position_embeddings": 4096,
        "training.bptt_depth": question.depth,
        "training.batch_size": rows,
        "training.gradient_accumulation": question.rows // rows // layout.data_ranks(gpus),
        "compute.reduction": layout.reduction,
        "compute.recompute": layout.recompute,
        "deepspeed": f"ds_configs/zero{layout.stage}.json",
    }
    if layout.stages > 1:
        values |= {"pipeline.stages": layout.stages, "pipeline.micro_batches": layout.micro_batches}
    words = [word for key, value in values.items() for word in (f"--{key}", json.dumps(value).strip('"'))]
    return ["--steps", "2", "--warmup", "3", *words]


def row(number: int, question: Question, best: Estimate, measured: str) -> str:
    """Return a row of the table in Markdown."""
    layout = best.layout
    at_once = f"{layout.rows}" if layout.stages == 1 else f"{layout.rows} x {layout.micro_batches}"
    cells = [
        str(number),
        question.shape,
        f"{question.rows} x {question.depth}",
        layout.family,
        layout.recompute,
        at_once,
    ]
    cells += [f"{best.tokens_per_second:,.0f}", f"{best.mfu:.0%}", f"{best.memory.peak / GIB:.1f}", measured]
    return f"| {' | '.join(cells)} |"


def start(best: Estimate) -> list[str]:
    """Return the command that starts a benchmark's ranks; GPUs of each simulated node get an identity of their own."""
    gpus = str(best.fleet.count)
    if best.fleet.nodes == 1:
        return [sys.executable, "-m", "hmt_ds.cli", "bench", RECIPE, "--ranks", gpus]
    node = f"export NCCL_NET=Socket NCCL_IB_DISABLE=1 NCCL_HOSTID=node$((LOCAL_RANK / {best.fleet.per_node}))"
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", gpus, "--no-python", "bash", "-c"]
    return [*run, f'{node}; exec "$@"', "bash", sys.executable, "-m", "hmt_ds.bench", RECIPE]


def measure(file: Path, question: Question, best: Estimate) -> str:
    """Run a layout unless its JSON file is there; return its tokens/s per GPU and peak with the prediction's errors."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        words = [*start(best), "--json", str(file), *arguments(question, best)]
        with file.with_suffix(".log").open("w") as log:
            try:
                subprocess.run(words, stdout=log, stderr=log, timeout=SECONDS)
            except subprocess.TimeoutExpired:
                return f"not in {SECONDS} s"
    if not file.exists():
        return "failed"
    result = json.loads(file.read_text())
    found, peak = result["speed"]["whole_step"]["tokens_per_second_per_gpu"], result["memory"]["peak_bytes"]
    error = best.tokens_per_second / found - 1
    return f"{found:,.0f} ({error:+.1%}), {peak / GIB:.1f} GiB ({best.memory.peak / peak - 1:+.1%})"


def main(machine: str = "", folder: str = "", *numbers: str) -> None:
    """Print the table of one machine, or of all; with a folder, run the layouts."""
    for name in [machine] if machine else MACHINES:
        print(f"\n**{name}**\n")
        print("| | shape | rows x depth | layout | recompute | rows at once | tokens/s per GPU, planned |", end="")
        print(" MFU | GiB | measured |")
        print("|---|---|---|---|---|---|---|---|---|---|")
        for number, (question, best) in enumerate(answers(name)):
            measured = ""
            if folder and (not numbers or str(number) in numbers):
                measured = measure(Path(folder) / f"{number}.json", question, best)
            print(row(number, question, best, measured), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
