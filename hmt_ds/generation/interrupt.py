"""Handle Ctrl-C while text is generated: the first one ends the answer and keeps it, the second one ends
the program."""

import signal
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria


class UntilInterrupted(StoppingCriteria):
    """Stopping criterion for ``generate`` that ends all rows after a Ctrl-C; a context manager, in effect in its block.

    Attributes:
        hit: whether Ctrl-C was pressed within the block.
    """

    def __init__(self) -> None:
        self.hit = False

    def __enter__(self) -> "UntilInterrupted":
        self.before = signal.signal(signal.SIGINT, self.note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self.before)

    def note(self, _: int, frame: FrameType | None) -> None:
        """Note the first Ctrl-C, and let the next one raise KeyboardInterrupt; the handler given to Python's
        ``signal.signal``.

        Args:
            frame: unused.
        """
        self.hit = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        """Return whether each row ends here, ``[batch]`` bool.

        Args:
            input_ids: ``[batch, tokens]``.
            scores: not used.
        """
        return torch.full((len(input_ids),), self.hit, dtype=torch.bool, device=input_ids.device)
