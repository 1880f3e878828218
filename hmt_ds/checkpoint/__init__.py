"""Saving a run and going on from there."""

from typing import TYPE_CHECKING

from hmt_ds import lazy_imports

if TYPE_CHECKING:
    from hmt_ds.checkpoint.files import CheckpointError
    from hmt_ds.checkpoint.load import load_checkpoint, newest_intact
    from hmt_ds.checkpoint.save import Keeping, RunPosition, Saver
else:
    __getattr__ = lazy_imports(__file__)

__all__ = ["CheckpointError", "Keeping", "RunPosition", "Saver", "load_checkpoint", "newest_intact"]
