"""Settings of the memory around a backbone: the recipe's section ``memory``. Imports no torch."""

from dataclasses import dataclass
from typing import Literal, get_args

Mode = Literal["hmt", "rmt", "backbone"]
RecallScale = Literal["paper", "reference"]
MODES: tuple[str, ...] = get_args(Mode)


@dataclass(frozen=True)
class MemorySettings:
    """Sizes of the memory around a backbone."""

    segment_length: int
    """L: fresh tokens per segment; sensory tokens and prompts are not counted."""
    mode: Mode = "hmt"
    """hmt: recall over the cached memories; rmt: only the last memory is passed on (the paper's first training stage);
    backbone: no memory, sensory tokens only."""
    sensory_tokens: int = 32
    """k: tokens of the previous segment that are repeated in front of each segment."""
    memory_tokens: int = 1
    """m: embeddings per memory. The paper uses one."""
    cached_memories: int = 300
    """N: how many of the newest memories the recall attends to."""
    summary_fraction: float = 0.5
    """Fraction of a segment that its summary pass reads."""
    recall_dim: int | None = None
    """Width of the recall's query and key projections. Default: the embedding width."""
    recall_scale: RecallScale = "paper"
    """paper: divide scores by sqrt(recall_dim); reference: divide by recall_dim where that and the embedding width are
    at least 4096, as HMT-pytorch does in training. Use reference only for checkpoints that HMT-pytorch trained."""

    def recall_width(self, embedding_width: int) -> int:
        """Return ``recall_dim``, or the embedding width where it is not set."""
        return self.recall_dim or embedding_width

    @property
    def summary_length(self) -> int:
        """j, how many tokens of a segment its summary pass reads."""
        return max(1, round(self.segment_length * self.summary_fraction))

    @property
    def positions(self) -> int:
        """Length of the longest sequence that the backbone sees: prompt, sensory tokens, segment, prompt."""
        prompts = 0 if self.mode == "backbone" else 2 * self.memory_tokens
        return prompts + self.sensory_tokens + self.segment_length

    @property
    def summary_share(self) -> float:
        """Positions of a summary pass, prompts included, per position of a segment."""
        return (self.summary_length + 2 * self.memory_tokens) / self.positions

    @property
    def kept_memories(self) -> int:
        """How many memories a segment can use: N with recall, 1 in mode rmt, 0 in mode backbone."""
        return {"hmt": self.cached_memories, "rmt": 1, "backbone": 0}[self.mode]
