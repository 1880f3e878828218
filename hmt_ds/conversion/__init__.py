"""Checkpoints of other shapes: ours, HMT-pytorch's and DeepSpeed's into Hugging Face folders."""

from hmt_ds.conversion.errors import ConversionError
from hmt_ds.conversion.folder import Export, write_folder

__all__ = ["ConversionError", "Export", "write_folder"]
