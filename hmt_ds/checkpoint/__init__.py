"""Saving a run and going on from there."""

from hmt_ds.checkpoint.files import CheckpointError
from hmt_ds.checkpoint.load import load_checkpoint, newest_intact
from hmt_ds.checkpoint.save import Keeping, Progress, Saver

__all__ = ["CheckpointError", "Keeping", "Progress", "Saver", "load_checkpoint", "newest_intact"]
