"""Speed and memory of the ZeRO executor on random tokens, for some DeepSpeed files in one run.

    torchrun --nproc_per_node 2 tests/benchmarks/zero_stages.py --shape 6.8b --depth 8 --batch 2 zero2 zero3

Prints fresh tokens per second and rank, useful TFLOP/s (recomputation not counted) and peak memory; AdamW included.
"""

import argparse
import gc
import time
from pathlib import Path

import torch
from deepspeed.runtime.zero.partition_parameters import shutdown_init_context

from hmt_ds.memory import Window
from hmt_ds.parallel.build import build_hmt
from hmt_ds.parallel.distributed import join, leave, quiet, rank
from hmt_ds.parallel.ds_config import EngineSettings, fill_ds_config, read_ds_config
from hmt_ds.parallel.zero import ZeroExecutor
from hmt_ds.planning.flops import useful_flops_per_token

SHAPES = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    "1.1b": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
    "6.8b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
}
DS_CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"


def random_window(batch: int, depth: int, length: int, vocabulary: int) -> Window:
    """A window of documents that all begin with it."""
    ids = torch.randint(vocabulary, (batch, depth * length + 1))
    starts = torch.zeros(batch, depth, dtype=torch.bool)
    starts[:, 0] = True
    shape = (batch, depth, length)
    return Window(ids[:, :-1].reshape(shape), ids[:, 1:].reshape(shape), torch.full((batch, depth), length), starts)


def measure(name: str, arguments: argparse.Namespace, device: torch.device) -> None:
    """Build, warm up, time and print one line."""
    settings = EngineSettings(
        arguments.precision, arguments.batch, arguments.depth, 1.0, "AdamW", {"lr": 1e-5, "weight_decay": 0.0}
    )
    ds_config = fill_ds_config(read_ds_config(DS_CONFIGS / f"{name}.json"), settings)
    source = {"model_type": "llama", "vocab_size": 32000, "max_position_embeddings": 4096, **SHAPES[arguments.shape]}
    memory = {"mode": arguments.mode, "segment_length": arguments.length, "recall_dim": None}
    model = build_hmt(
        source, memory, ds_config=ds_config, precision=arguments.precision, train=arguments.train, device=device
    )
    sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in model.parameters()]
    parameters, trained = sum(n for n, _ in sizes), sum(n for n, grad in sizes if grad)
    executor = ZeroExecutor(model, ds_config=ds_config, precision=arguments.precision, device=device)
    window = random_window(arguments.batch, arguments.depth, arguments.length, source["vocab_size"])
    seconds = []
    for _ in range(arguments.steps + 1):
        started = time.perf_counter()
        loss = executor.train_batch([window]).loss  # reads the loss, and so waits for the device
        seconds.append(time.perf_counter() - started)
    speed = window.input_ids.numel() / sorted(seconds[1:])[len(seconds[1:]) // 2]
    tflops = speed * useful_flops_per_token(parameters, trained, executor.settings) / 1e12
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0
    if rank() == 0:
        what = f"{arguments.shape} {name} {arguments.precision} {arguments.train} depth {arguments.depth}"
        what += f" batch {arguments.batch} L {arguments.length}"
        print(f"{what}: {speed:,.0f} tokens/s, {tflops:.1f} TFLOP/s, {peak:.1f} GiB, loss {loss:.3f}", flush=True)
    executor.engine.destroy()
    shutdown_init_context()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", metavar="DS_CONFIG", help="names in ds_configs/")
    parser.add_argument("--shape", choices=SHAPES, default="1.1b")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="bf16")
    parser.add_argument("--train", choices=("whole", "frozen", "lora"), default="whole")
    parser.add_argument("--mode", choices=("hmt", "rmt", "backbone"), default="hmt")
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=3)
    arguments = parser.parse_args()
    quiet()
    device = join()
    for name in arguments.configs:
        if device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        measure(name, arguments, device)
    leave()


if __name__ == "__main__":
    main()
