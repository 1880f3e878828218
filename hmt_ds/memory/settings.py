"""Settings of the memory around a backbone: the recipe's section ``memory``. Imports no torch."""

from dataclasses import dataclass
from typing import Literal, get_args

Mode = Literal["hmt", "rmt", "backbone"]
Interface = Literal["paper", "adapted"]
RecallScale = Literal["paper", "reference"]
MODES: tuple[str, ...] = get_args(Mode)


@dataclass(frozen=True)
class MemorySettings:
    """Settings of the memory around a backbone: its kind, its sizes, and how it is joined to the backbone."""

    segment_length: int
    """Number of document tokens per segment (L in the paper); memory prompts, and tokens repeated from the previous
    segment, are not counted."""
    mode: Mode = "hmt"
    """What a segment reads of earlier ones. hmt: memories that it retrieves from all cached ones; rmt: only the last
    memory (the paper's first training stage); backbone: no memory, only the last tokens of the previous segment."""
    interface: Interface = "paper"
    """How memories enter the backbone and are written. paper: by the paper's equations, needed for its checkpoints;
    pretrained backbones hardly use such memories. adapted: memories are scaled to the range of token embeddings, after
    an attention sink, and written at embeddings of their own; mode hmt retrieves older memories beside the last one."""
    sensory_tokens: int = 32
    """Number of tokens of the previous segment that are repeated in front of each segment (sensory tokens, k in the
    paper)."""
    memory_tokens: int = 1
    """Number of embeddings per memory (m). The paper uses 1."""
    cached_memories: int = 300
    """Number of newest memories that segments can retrieve from in mode hmt (N in the paper); older ones
    are dropped."""
    last_memories: int = 1
    """Number of newest memories that each segment reads side by side, oldest first; none in mode backbone. More than
    1 needs interface adapted."""
    recalled_memories: int = 1
    """Number of memories that each segment retrieves beside the last ones. Only with interface adapted and mode hmt."""
    recall_loss: float = 0.0
    """Weight of the auxiliary loss of memory retrieval, 0 for none: cross-entropy over the cached memories of all rows
    of a micro-batch, where the data says which memory is the right one. Only with interface adapted and mode hmt."""
    summary_fraction: float = 0.5
    """Fraction of a segment's tokens, from its beginning, of which the query for memory retrieval is made. Only with
    interface paper; adapted makes it of the last tokens of the previous segment."""
    recall_dim: int | None = None
    """Width of the query and key projections of memory retrieval. Default: the backbone's embedding width."""
    recall_scale: RecallScale = "paper"
    """Divisor of the attention scores of memory retrieval. paper: sqrt(recall_dim); reference: recall_dim where that
    and the embedding width are at least 4096, as HMT-pytorch does in training. Use reference only for checkpoints that
    HMT-pytorch trained."""

    def recall_width(self, embedding_width: int) -> int:
        """Return the width of the query and key projections of memory retrieval: ``recall_dim``, or else the embedding
        width.

        Args:
            embedding_width: width of the backbone's embeddings.
        """
        return self.recall_dim or embedding_width

    @property
    def summary_length(self) -> int:
        """Number of tokens that a segment's retrieval query is made of.

        They are the segment's first tokens, or with ``interface: adapted`` the last tokens before it.
        """
        if self.interface == "adapted":
            return self.sensory_tokens
        return max(1, round(self.segment_length * self.summary_fraction))

    @property
    def summarises(self) -> bool:
        """Whether each segment has a summary pass, which computes its retrieval query (mode hmt only)."""
        return self.mode == "hmt"

    @property
    def sink_tokens(self) -> int:
        """Number of learned embeddings at the start of a sequence that act as attention sink: 1 with ``adapted``, else
        0."""
        return int(self.interface == "adapted")

    def prompt_tokens(self, mode: Mode | None = None) -> int:
        """Return the number of embeddings of the memory prompt in front of a segment's tokens.

        Args:
            mode: memory mode; default: the mode of the settings.
        """
        mode = mode or self.mode
        if mode == "backbone":
            return 0
        recalled = self.recalled_memories if self.interface == "adapted" and mode == "hmt" else 0
        return (self.last_memories + recalled) * self.memory_tokens

    def write_tokens(self, mode: Mode | None = None) -> int:
        """Return the number of positions after a segment's tokens at which its memory is written.

        Args:
            mode: memory mode; default: the mode of the settings.
        """
        return 0 if (mode or self.mode) == "backbone" else self.memory_tokens

    @property
    def positions(self) -> int:
        """Number of positions that the backbone reads per segment: sink, prompt, repeated (sensory) tokens, segment,
        memory."""
        around = self.sink_tokens + self.prompt_tokens() + self.write_tokens()
        return around + self.sensory_tokens + self.segment_length

    @property
    def summary_positions(self) -> int:
        """Number of positions that the backbone reads to compute one segment's retrieval query, prompts included."""
        around = 1 if self.interface == "adapted" else self.memory_tokens
        return around + self.summary_length + self.memory_tokens

    @property
    def summary_share(self) -> float:
        """Number of positions read for a segment's retrieval query, divided by the number read for the
        segment itself."""
        return self.summary_positions / self.positions

    @property
    def kept_memories(self) -> int:
        """Number of memories that a segment can use: ``cached_memories`` in mode hmt, ``last_memories`` in rmt, 0 in
        backbone."""
        return {"hmt": self.cached_memories, "rmt": self.last_memories, "backbone": 0}[self.mode]
