"""Load a run's weights as `hmt-ds generate --ranks` does; print this rank's share, and what is gathered after use."""

from pathlib import Path
from typing import Any

import torch

from hmt_ds.distributed.process_group import end_process
from hmt_ds.generate import load_shared
from hmt_ds.generation.options import GenerateOptions
from hmt_ds.training.rank import run_as_rank


def show(source: str, _: list[str], device: torch.device) -> None:
    """Generate some tokens, and print a line."""
    model = load_shared(Path(source), GenerateOptions(prompt=("a",)), device).model
    model.generate(torch.ones(1, 50, dtype=torch.long, device=device), max_new_tokens=20, do_sample=False)
    weights: list[Any] = list(model.hmt.parameters())
    own, whole = sum(weight.ds_tensor.numel() for weight in weights), sum(weight.ds_numel for weight in weights)
    print(f"share {own / whole:.2f}, gathered {sum(weight.numel() for weight in weights)}", flush=True)


if __name__ == "__main__":
    end_process(run_as_rank(show))
