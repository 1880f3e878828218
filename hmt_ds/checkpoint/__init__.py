"""Saving a run and going on from there."""

from hmt_ds.checkpoint.files import CheckpointError
from hmt_ds.checkpoint.load import load_checkpoint, newest_intact
from hmt_ds.checkpoint.save import Keeping, RunPosition, Saver

__all__ = ["CheckpointError", "Keeping", "RunPosition", "Saver", "load_checkpoint", "newest_intact"]
