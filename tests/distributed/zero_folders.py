"""Write checkpoints in DeepSpeed's own format, as users of DeepSpeed and accelerate have them. Run by run_ranks."""

import json
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from tiny_runs import get_weights, windows
from zero_cases import Case
from zero_gradients import make_executor

from hmt_ds.distributed.process_group import end_process, join, rank, world_size


def be_a_rank(task: dict[str, Any], result: Path) -> None:
    """Train two steps of each case, save, and write the weights next to the checkpoint."""
    device = join(timeout_minutes=2)
    for name, case in task["cases"].items():
        executor = make_executor(Case(**case, reduction="step"), device)
        for window in windows(rank(), world_size())[:2]:
            executor.train_batch([window])
        folder = Path(task["folder"]) / name
        executor.engine.save_checkpoint(str(folder), tag="pytorch_model")
        weights = get_weights(executor.engine.module)
        if rank() == 0:
            save_file({name: w.float().contiguous() for name, w in weights.items()}, folder / "weights.safetensors")
        executor.engine.destroy()
    if rank() == 0:
        result.write_text("null")
    end_process(0)


if __name__ == "__main__":
    be_a_rank(json.loads(sys.argv[1]), Path(sys.argv[2]))
