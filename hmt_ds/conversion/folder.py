"""The Hugging Face folder: weights, configuration, tokenizer, code and card; there whole or not at all."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from hmt_ds.backbones import LoraSettings
from hmt_ds.checkpoint.files import flush_folder, partial_path
from hmt_ds.conversion.conversion_error import ConversionError
from hmt_ds.conversion.convert_options import What
from hmt_ds.conversion.remote_code import remote_code
from hmt_ds.conversion.shards import plan_shards, write_shards
from hmt_ds.conversion.weights import Weights
from hmt_ds.memory import MemorySettings

BACKBONE = "backbone.model."
SETTINGS = "memory_config.json"


@dataclass(frozen=True)
class Export:
    """What is written.

    Attributes:
        what: the whole, or which part of it.
        weights: that part's, under the names that our model has for them (an adapter's: peft's).
        config: the backbone's.
        settings: the memory's.
        dtype: of the weights in the folder.
        tokenizer, generation: of the run, where known.
        lora: peft's configuration, for an adapter.
        card: README.md's text, and pictures that it shows.
    """

    what: What
    weights: Weights
    config: Any
    settings: MemorySettings
    dtype: torch.dtype
    tokenizer: Any = None
    generation: Any = None
    lora: Any = None
    card: str = ""
    pictures: tuple[Path, ...] = ()

    @property
    def stem(self) -> str:
        """Name of the files of weights."""
        return {"memory": "memory", "adapter": "adapter_model"}.get(self.what, "model")

    def in_the_folder(self) -> Weights:
        """The weights under the names that they get there."""
        if self.what == "model":
            return self.weights.renamed(lambda name: f"hmt.{name}")
        return self.weights.without_prefix(BACKBONE) if self.what == "backbone" else self.weights

    def summary(self) -> str:
        """One line: how much, in how many files."""
        weights = self.in_the_folder()
        numbers = sum(torch.Size(shape).numel() for shape in weights.shapes.values())
        shards = len(plan_shards(weights, self.dtype, self.stem))
        size = numbers * self.dtype.itemsize
        kind = str(self.dtype).removeprefix("torch.")
        return (
            f"{self.what}: {len(weights.shapes):,} weights, {numbers:,} numbers, {kind}, {size:,} bytes, {shards} files"
        )


def write_folder(export: Export, target: Path, max_shard: str = "5GB") -> None:
    """Write it aside, verify it, and make it visible by one rename.

    Raises:
        ConversionError: if it cannot be written, or is not what was meant; nothing is left then.
    """
    aside = partial_path(target)
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        fill(export, aside, max_shard)
        for file in aside.rglob("*"):
            if file.is_dir():  # of a tokenizer with several chat templates
                flush_folder(file)
                continue
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        flush_folder(aside)
        aside.rename(target)
        flush_folder(target.parent)
    except (OSError, SafetensorError) as error:
        raise ConversionError(f"{target} cannot be written: {error}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def fill(export: Export, folder: Path, max_shard: str) -> None:
    """All files."""
    write_shards(folder, export.in_the_folder(), export.dtype, export.stem, max_shard)
    parts: dict[str, Callable[[Export, Path], None]] = {
        "model": fill_model,
        "backbone": fill_backbone,
        "memory": fill_memory,
        "adapter": lambda export, folder: export.lora.save_pretrained(folder),
    }
    parts[export.what](export, folder)
    if export.what in ("model", "backbone"):
        if export.tokenizer is not None:
            export.tokenizer.save_pretrained(folder)
        if export.generation is not None:
            export.generation.save_pretrained(folder)
    (folder / "README.md").write_text(export.card, encoding="utf-8")
    for picture in export.pictures:
        shutil.copyfile(picture, folder / picture.name)


def fill_model(export: Export, folder: Path) -> None:
    """Configuration and code."""
    backbone = export.config.to_dict()
    backbone.pop("_name_or_path", None)
    config = {
        "architectures": ["HMTForCausalLM"],
        "auto_map": {"AutoConfig": "modeling_hmt.HMTConfig", "AutoModelForCausalLM": "modeling_hmt.HMTForCausalLM"},
        "model_type": "hmt",
        "dtype": str(export.dtype).removeprefix("torch."),
        "backbone": backbone,
        "memory": asdict(export.settings),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name, source in remote_code().items():
        (folder / name).write_text(source, encoding="utf-8")


def fill_backbone(export: Export, folder: Path) -> None:
    """The configuration of a plain model."""
    config = type(export.config).from_dict(export.config.to_dict())
    config.dtype = export.dtype
    config.save_pretrained(folder)


def fill_memory(export: Export, folder: Path) -> None:
    """The sizes."""
    (folder / SETTINGS).write_text(json.dumps(asdict(export.settings), indent=2) + "\n")


def peft_config(lora: LoraSettings, source: str | None) -> Any:
    """peft's configuration of a run's adapters."""
    from peft import LoraConfig

    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
        base_model_name_or_path=source,
        inference_mode=True,
    )
