"""Distributed training of the Hierarchical Memory Transformer (arXiv 2405.06067) on DeepSpeed."""

__version__ = "0.1.0"
