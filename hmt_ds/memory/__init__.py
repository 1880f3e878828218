"""The maths of the Hierarchical Memory Transformer, on torch alone; used unchanged with ZeRO and on a pipeline."""

from typing import TYPE_CHECKING

from hmt_ds import lazy_imports

if TYPE_CHECKING:
    from hmt_ds.memory.backbone import Backbone
    from hmt_ds.memory.boundaries import Boundaries, RandomState
    from hmt_ds.memory.bptt import WindowTotals, backward_through_time, read_window
    from hmt_ds.memory.cell import HMT, SegmentOutput
    from hmt_ds.memory.recompute_plan import RecomputePlan
    from hmt_ds.memory.segments import IGNORED, Segment, Summary, Window, split_document
    from hmt_ds.memory.settings import MODES, MemorySettings
    from hmt_ds.memory.state import MemoryState
else:
    __getattr__ = lazy_imports(__file__)

__all__ = [
    "HMT",
    "IGNORED",
    "MODES",
    "Backbone",
    "Boundaries",
    "MemorySettings",
    "MemoryState",
    "RandomState",
    "RecomputePlan",
    "Segment",
    "SegmentOutput",
    "Summary",
    "Window",
    "WindowTotals",
    "backward_through_time",
    "read_window",
    "split_document",
]
