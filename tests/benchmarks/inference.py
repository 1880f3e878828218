"""Measure reading and decoding with a memory, beside the same backbone with full attention and a cache of all keys.

    python tests/benchmarks/inference.py launch/recipes/bench-1.1b.yaml --lengths 10000 100000 1000000

Weights are random, tokens too. Everything runs in one process, one length after the other: reading (tokens/s, peak
memory above the weights), decoding behind it (milliseconds a token), and for comparison the first pass of training over
the same tokens. Full attention stops at the first length that does not fit.
"""

import argparse
import gc
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import DynamicCache

from hmt_ds.backbones import build_model
from hmt_ds.config.load import load_recipe
from hmt_ds.conversion.modeling_hmt import HMTForCausalLM
from hmt_ds.inference.segment_cache import SegmentCache
from hmt_ds.memory import HMT, MemoryState, split_document
from hmt_ds.memory.bptt import Unroll
from hmt_ds.memory.recompute_plan import RecomputePlan

SEGMENTS = 64  # read in one call
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
Numbers = dict[str, float | int | str | None]


def build(recipe_file: Path, interface: str, device: torch.device) -> HMTForCausalLM:
    """Build the recipe's model with random weights."""
    recipe = load_recipe(recipe_file)
    dtype = DTYPES[str(recipe.model.precision)]
    backbone = build_model(recipe.model.source, dtype=dtype, device=device)
    with device:
        hmt = HMT(backbone, replace(recipe.memory, interface=interface)).to(dtype)
    return HMTForCausalLM.around(hmt.eval())


def timed(work: Callable[[], Any], device: torch.device) -> tuple[float, float, Any]:
    """Return seconds, and GiB at the peak above what is there before, and the result."""
    gc.collect()
    before = 0
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    begin = time.perf_counter()
    result = work()
    peak = 0
    if device.type == "cuda":
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
    return time.perf_counter() - begin, peak / 2**30, result


def read(model: HMTForCausalLM, ids: Tensor) -> SegmentCache:
    """Read a document behind an empty cache."""
    cache = SegmentCache()
    for part in ids.split(SEGMENTS * model.hmt.settings.segment_length, dim=1):
        model(part, past_key_values=cache, logits_to_keep=1)
    return cache


def read_whole(model: Any, ids: Tensor) -> DynamicCache:
    """Read a document with full attention, 8192 tokens at a time."""
    cache = DynamicCache(config=model.config)
    for part in ids.split(8192, dim=1):
        model(input_ids=part, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def decode(model: Any, cache: Any, new: int) -> None:
    """Write tokens greedily behind a cache, without transformers' loop, which costs both alike."""
    token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    for _ in range(new):
        token = model(input_ids=token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(dim=-1)


def first_pass(model: HMTForCausalLM, ids: Tensor) -> None:
    """Read windows of 16 segments as the first pass of training does: without graph, head and loss."""
    settings, plan = model.hmt.settings, RecomputePlan(kept_segments=0, summary_segments=16)
    options: dict[str, Any] = {"dtype": model.dtype, "device": ids.device}
    state = MemoryState.empty(1, settings.memory_tokens, model.hmt.backbone.dim, settings.sensory_tokens, **options)
    length = settings.segment_length
    for at, part in enumerate(ids[:, : ids.shape[1] // length * length].split(16 * length, dim=1)):
        window = split_document(part, length, goes_on=at > 0)
        unroll = Unroll(model.hmt, settings, window, state, plan, nullcontext)
        for n in range(len(window)):
            reading = unroll.read_segment(n, with_loss=False)
            unroll.borders.write(n, reading.output.memory)
        state = unroll.borders.state(window, window.tail(len(window) - 1, settings.sensory_tokens))


@torch.no_grad()
def measure(model: HMTForCausalLM, length: int, new: int, *, full: bool) -> tuple[Numbers, bool]:
    """Measure one length; return the numbers, and whether full attention still fitted."""
    device = model.device
    ids = torch.randint(model.config.vocab_size, (1, length), device=device)
    seconds, peak, cache = timed(lambda: read(model, ids), device)
    numbers: Numbers = {"tokens": length, "read_tokens_per_s": length / seconds, "read_peak_gib": peak}
    decode(model, cache, 8)
    seconds, _, _ = timed(lambda: decode(model, cache, new), device)
    numbers["decode_ms"] = 1000 * seconds / new
    seconds, _, _ = timed(lambda: first_pass(model, ids), device)
    numbers["training_first_pass_tokens_per_s"] = length / seconds
    if full:
        try:
            plain = model.backbone_model
            seconds, peak, whole = timed(lambda: read_whole(plain, ids), device)
            numbers |= {"full_tokens_per_s": length / seconds, "full_peak_gib": peak}
            decode(plain, whole, 8)
            seconds, _, _ = timed(lambda: decode(plain, whole, new), device)
            numbers["full_decode_ms"] = 1000 * seconds / new
        except torch.OutOfMemoryError:
            full = False
    return numbers, full


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--lengths", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--new", type=int, default=64, help="tokens to decode")
    parser.add_argument("--interface", default="adapted", choices=("adapted", "paper"))
    parser.add_argument("--full-up-to", type=int, default=200_000, help="longest document for full attention")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, full, rows = build(arguments.recipe, arguments.interface, device), True, []
    measure(model, min(arguments.lengths), 8, full=False)  # kernels are chosen and memory is mapped once
    for length in arguments.lengths:
        row, full = measure(model, length, arguments.new, full=full and length <= arguments.full_up_to)
        rows.append(row)
        print(json.dumps(row), flush=True)
    table = Table(*rows[0], title=f"{arguments.recipe.stem}, {arguments.interface}")
    for row in rows:
        table.add_row(*(f"{row[name]:,.4g}" if isinstance(row.get(name), (int, float)) else "-" for name in rows[0]))
    Console(width=160).print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
