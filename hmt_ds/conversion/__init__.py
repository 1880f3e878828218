"""Conversion of our checkpoints, HMT-pytorch's and DeepSpeed's into Hugging Face folders."""
