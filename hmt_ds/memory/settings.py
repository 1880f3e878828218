"""Settings of the memory around a backbone: the recipe's section ``memory``. Imports no torch."""

from dataclasses import dataclass
from typing import Literal, get_args

Mode = Literal["hmt", "rmt", "backbone"]
Interface = Literal["paper", "adapted"]
RecallScale = Literal["paper", "reference"]
MODES: tuple[str, ...] = get_args(Mode)


@dataclass(frozen=True)
class MemorySettings:
    """Sizes of the memory around a backbone, and how the two are joined."""

    segment_length: int
    """L: fresh tokens per segment; sensory tokens and prompts are not counted."""
    mode: Mode = "hmt"
    """hmt: recall over the cached memories; rmt: only the last memory is passed on (the paper's first training stage);
    backbone: no memory, sensory tokens only."""
    interface: Interface = "paper"
    """How memories enter the backbone and are written. paper: the paper's equations, for its checkpoints; backbones
    ignore such a memory. adapted: memories are mapped to the range of token embeddings behind an attention sink, and
    written at embeddings of their own; mode hmt recalls older memories beside the last one."""
    sensory_tokens: int = 32
    """k: tokens of the previous segment that are repeated in front of each segment."""
    memory_tokens: int = 1
    """m: embeddings per memory. The paper uses one."""
    cached_memories: int = 300
    """N: how many of the newest memories the recall attends to."""
    recalled_memories: int = 1
    """How many memories are recalled beside the last one. With interface adapted and mode hmt."""
    recall_loss: float = 0.0
    """Weight of the recall's own loss: cross-entropy over the cached memories of all rows of a micro-batch, where the
    data says which memory answers. With interface adapted and mode hmt."""
    summary_fraction: float = 0.5
    """Fraction of a segment that its summary pass reads. With interface paper; adapted reads the sensory tokens."""
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
        """j, how many tokens the summary pass reads: of the segment's beginning, or else its sensory tokens."""
        if self.interface == "adapted":
            return self.sensory_tokens
        return max(1, round(self.segment_length * self.summary_fraction))

    @property
    def summarises(self) -> bool:
        """Whether a summary pass asks for what a segment recalls."""
        return self.mode == "hmt"

    @property
    def sink_tokens(self) -> int:
        """How many learned embeddings take the place of the attention sink in front of everything: 0 or 1."""
        return int(self.interface == "adapted")

    def prompt_tokens(self, mode: Mode | None = None) -> int:
        """Return the length of P_n, the memory prompt in front of the tokens."""
        mode = mode or self.mode
        if mode == "backbone":
            return 0
        recalled = self.recalled_memories if self.interface == "adapted" and mode == "hmt" else 0
        return (1 + recalled) * self.memory_tokens

    def write_tokens(self, mode: Mode | None = None) -> int:
        """Return the number of positions behind the tokens at which the memory is written."""
        return 0 if (mode or self.mode) == "backbone" else self.memory_tokens

    @property
    def positions(self) -> int:
        """Length of the longest sequence that the backbone sees: sink, prompt, sensory tokens, segment, memory."""
        around = self.sink_tokens + self.prompt_tokens() + self.write_tokens()
        return around + self.sensory_tokens + self.segment_length

    @property
    def summary_positions(self) -> int:
        """Length of the sequence of a summary pass, what is around its tokens included."""
        around = 1 if self.interface == "adapted" else self.memory_tokens
        return around + self.summary_length + self.memory_tokens

    @property
    def summary_share(self) -> float:
        """Positions of a summary pass per position of a segment."""
        return self.summary_positions / self.positions

    @property
    def kept_memories(self) -> int:
        """How many memories a segment can use: N with recall, 1 in mode rmt, 0 in mode backbone."""
        return {"hmt": self.cached_memories, "rmt": 1, "backbone": 0}[self.mode]
