"""Hugging Face causal language models as backbones of the Hierarchical Memory Transformer (HMT)."""

from typing import TYPE_CHECKING

from hmt_ds import lazy_imports

if TYPE_CHECKING:
    from hmt_ds.backbones.build_backbone import build_model, check_weights
    from hmt_ds.backbones.converted import check_memory, compare_memory, fill_memory, read_converted
    from hmt_ds.backbones.families import FAMILIES, Family, family_of
    from hmt_ds.backbones.model import BackboneError, CausalLM
    from hmt_ds.backbones.model_config import check_config_keys, read_config
    from hmt_ds.backbones.probe import check_adapters, check_backbone, check_packing
    from hmt_ds.backbones.quantize import is_quantized, quantize_linear, quantize_problems
    from hmt_ds.backbones.settings import LoraSettings
    from hmt_ds.backbones.trainable import select_trainable
else:
    __getattr__ = lazy_imports(__file__)

__all__ = [
    "FAMILIES",
    "BackboneError",
    "CausalLM",
    "Family",
    "LoraSettings",
    "build_model",
    "check_adapters",
    "check_backbone",
    "check_config_keys",
    "check_memory",
    "check_packing",
    "check_weights",
    "compare_memory",
    "family_of",
    "fill_memory",
    "is_quantized",
    "quantize_linear",
    "quantize_problems",
    "read_config",
    "read_converted",
    "select_trainable",
]
