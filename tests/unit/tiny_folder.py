"""Tiny converted folders, and their models as transformers loads them."""

from pathlib import Path
from typing import Any

import torch
from tiny import LLAMA, make_model

from hmt_ds.backbones import read_config
from hmt_ds.conversion.export import Export
from hmt_ds.conversion.folder import write_folder
from hmt_ds.conversion.modeling_hmt import HMTForCausalLM
from hmt_ds.conversion.weights import tensor_weights


def write_tiny(folder: Path, backbone: dict[str, Any] = LLAMA, **settings: Any) -> Path:
    """Write the folder of a random model of float32 weights."""
    model = make_model(backbone, **settings)
    weights = tensor_weights({name: weight.detach() for name, weight in model.named_parameters()})
    write_folder(Export("model", weights, read_config(backbone), model.settings, torch.float32), folder)
    return folder


def load_tiny(folder: Path, **options: Any) -> HMTForCausalLM:
    """Load a folder in float64 with this project's own copy of the code."""
    return HMTForCausalLM.from_pretrained(folder, **{"dtype": torch.float64} | options).eval()


def load_endless(folder: Path) -> HMTForCausalLM:
    """Load a folder in float64; no token ends a row, and 0 is the padding."""
    model = load_tiny(folder)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    return model


def mean_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss of transformers' causal language models: mean cross-entropy over the labels, shifted."""
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
