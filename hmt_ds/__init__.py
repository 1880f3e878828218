"""Distributed training of the Hierarchical Memory Transformer (arXiv 2405.06067) on DeepSpeed."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """``hmt_ds.load_pretrained``, without the seconds that transformers takes to import for those who do not ask."""
    if name == "load_pretrained":
        from hmt_ds.backbones.pretrained import load_pretrained

        return load_pretrained
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
