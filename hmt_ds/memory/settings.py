"""The sizes that define an HMT, in one immutable place."""

from dataclasses import dataclass
from typing import Literal, get_args

Mode = Literal["hmt", "rmt", "backbone"]
RecallScale = Literal["paper", "reference"]
MODES: tuple[str, ...] = get_args(Mode)


@dataclass(frozen=True)
class MemorySettings:
    """Sizes of the memory around a backbone.

    Attributes:
        mode: ``hmt`` recalls earlier memories; ``rmt`` hands on the last memory alone (the paper's first training
            stage); ``backbone`` has no memory at all, and keeps the sensory tokens.
        segment_length: L, fresh tokens per segment. Sensory tokens and prompts are not counted.
        sensory_tokens: k, tokens of the previous segment that are read again.
        memory_tokens: m, embeddings per memory. The paper uses one.
        cached_memories: N, how many of the newest memories the recall sees.
        summary_fraction: j / L, the share of a segment that the summary pass reads.
        recall_dim: width of the recall's projections.
        recall_scale: ``paper`` divides scores by sqrt(recall_dim). ``reference`` divides by recall_dim where that and
            the embedding width are at least 4096, as HMT-pytorch does in training: for its checkpoints only.
    """

    mode: Mode
    segment_length: int
    recall_dim: int
    sensory_tokens: int = 32
    memory_tokens: int = 1
    cached_memories: int = 300
    summary_fraction: float = 0.5
    recall_scale: RecallScale = "paper"

    @property
    def summary_length(self) -> int:
        """j, how many tokens of a segment its summary reads."""
        return max(1, round(self.segment_length * self.summary_fraction))

    @property
    def positions(self) -> int:
        """The longest sequence that the backbone is given: prompt, sensory tokens, segment, prompt."""
        prompts = 0 if self.mode == "backbone" else 2 * self.memory_tokens
        return prompts + self.sensory_tokens + self.segment_length

    @property
    def summary_share(self) -> float:
        """How many positions a summary has, prompts included, for each of a segment."""
        return (self.summary_length + 2 * self.memory_tokens) / self.positions

    @property
    def kept_memories(self) -> int:
        """How many memories a segment can see: N with recall, the last one without, none for the backbone alone."""
        return {"hmt": self.cached_memories, "rmt": 1, "backbone": 0}[self.mode]
