"""Saving a run and going on from there."""

from hmt_ds.checkpoint.save import CheckpointError, Progress, latest_checkpoint, load_checkpoint, save_checkpoint

__all__ = ["CheckpointError", "Progress", "latest_checkpoint", "load_checkpoint", "save_checkpoint"]
