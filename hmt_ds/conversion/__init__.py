"""Checkpoints of other shapes: ours, HMT-pytorch's and DeepSpeed's into Hugging Face folders."""
