"""Save checkpoints of a run, and resume from them."""

from typing import TYPE_CHECKING

from hmt_ds import lazy_imports

if TYPE_CHECKING:
    from hmt_ds.checkpoint.files import CheckpointError
    from hmt_ds.checkpoint.restore import load_checkpoint, load_weights, newest_intact
    from hmt_ds.checkpoint.run_state import RunPosition
    from hmt_ds.checkpoint.save import Retention, Saver
else:
    __getattr__ = lazy_imports(__file__)

__all__ = ["CheckpointError", "Retention", "RunPosition", "Saver", "load_checkpoint", "load_weights", "newest_intact"]
