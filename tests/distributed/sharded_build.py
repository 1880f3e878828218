"""Build a model at ZeRO-3 and record what this rank holds. Run by test_sharded_build."""

import json
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
from ranks import PROJECT
from transformers import AutoModelForCausalLM

from hmt_ds.distributed.process_group import all_gather_object, end_process, join, rank, world_size
from hmt_ds.memory import HMT, MemorySettings
from hmt_ds.parallel.build_hmt import build_hmt
from hmt_ds.parallel.deepspeed_config.fill import EngineSettings, fill_ds_config, read_ds_config


def build(source: Any, precision: str, stage: int = 3, train: str = "whole") -> HMT:
    """Build a model as a run does, from a folder or a configuration."""
    settings = EngineSettings(precision, 1, 4, 1.0, "AdamW", {"lr": 1e-3})
    config = fill_ds_config(read_ds_config(PROJECT / "ds_configs" / f"zero{stage}.json"), settings)
    memory = MemorySettings(segment_length=8, interface="adapted", memory_tokens=2)
    return build_hmt(source, memory, ds_config=config, precision=precision, train=train, seed=1)


def memory_weights(model: HMT) -> dict[str, torch.Tensor]:
    """The weights beside the backbone's."""
    return {name: p.detach() for name, p in model.named_parameters() if not name.startswith("backbone.")}


def same_memory(source: str, precision: str) -> bool:
    """Whether all ranks build the memory modules of a whole model, though they begin beside its embeddings."""
    expected = memory_weights(build(source, precision, stage=1))
    other = [memory_weights(build(source, precision, train=train)) for train in ("whole", "frozen")]
    equal = all(one.keys() == expected.keys() for one in other)
    equal = equal and all(torch.equal(one[name], weight) for one in other for name, weight in expected.items())
    return all(all_gather_object(equal))


def look(source: Any, precision: str) -> dict[str, Any]:
    """Return the state of every backbone parameter right after building from a folder or a configuration."""
    model = build(source, precision)
    parameters = dict(model.backbone.model.named_parameters())  # type: ignore[attr-defined]
    shares = [p.ds_tensor.numel() * world_size() / p.ds_numel for p in parameters.values()]
    whole = {}
    for name, parameter in parameters.items():
        with deepspeed.zero.GatheredParameters([parameter]):
            whole[name] = parameter.detach().float().cpu().clone()
    return {
        "held": sum(p.numel() for p in parameters.values()),
        "largest_share": max(shares),
        "dtypes": sorted({str(p.dtype) for p in parameters.values()}),
        "weights": whole,
    }


def main(task: dict[str, Any], result: Path) -> None:
    join(timeout_minutes=2)
    stored = AutoModelForCausalLM.from_pretrained(task["folder"]).state_dict()
    rows = {}
    for name, source in (("folder", task["folder"]), ("config", task["config"])):
        row = look(source, task["precision"])
        weights = row.pop("weights")
        row["spread"] = {n: float(w.std()) for n, w in weights.items() if w.dim() == 2}
        low = torch.bfloat16 if task["precision"] == "bf16" else torch.float32
        row["equal"] = name == "config" or all(torch.equal(w, stored[n].to(low).float()) for n, w in weights.items())
        rows[name] = row
    rows["folder"]["same_memory"] = same_memory(task["folder"], task["precision"])
    if rank() == 0:
        result.write_text(json.dumps(rows))
    end_process(0)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
