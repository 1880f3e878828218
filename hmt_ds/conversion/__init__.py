"""Conversion of checkpoints of hmt_ds, HMT-pytorch and DeepSpeed into Hugging Face folders."""
