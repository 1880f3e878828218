"""The maths of the Hierarchical Memory Transformer. Imports torch alone; every executor uses it unchanged."""

from hmt_ds.memory.boundaries import Borders, RandomState
from hmt_ds.memory.bptt import WindowTotals, backward_through_time, read_window
from hmt_ds.memory.cell import HMT, Backbone, SegmentOutput
from hmt_ds.memory.recompute_plan import Plan
from hmt_ds.memory.segments import IGNORED, Segment, Summary, Window, split_document
from hmt_ds.memory.settings import MODES, MemorySettings
from hmt_ds.memory.state import MemoryState

__all__ = [
    "HMT",
    "IGNORED",
    "MODES",
    "Backbone",
    "Borders",
    "MemorySettings",
    "MemoryState",
    "Plan",
    "RandomState",
    "Segment",
    "SegmentOutput",
    "Summary",
    "Window",
    "WindowTotals",
    "backward_through_time",
    "read_window",
    "split_document",
]
