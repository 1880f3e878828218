"""The documented interface of a DeepSpeed engine, as a typing Protocol."""

from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


class Engine(Protocol[Model]):
    """The documented members of a DeepSpeed engine (a model with its optimizer) that are used here, as a typing
    Protocol.

    Attributes:
        module: the model.
        device: device of the weights that compute.
        lr_scheduler: learning rate schedule of DeepSpeed or torch; None without an optimizer.
    """

    module: Model
    device: torch.device
    lr_scheduler: Any  # DeepSpeed's schedules and torch's share no base class

    # an engine passes on whatever its module's forward takes and returns
    def __call__(self, *arguments: object, **options: object) -> Any: ...
    def train(self, mode: bool = True) -> object: ...
    def eval(self) -> object: ...
    def backward(self, loss: Tensor, *, scale_wrt_gas: bool = True) -> object: ...
    def step(self) -> object: ...
    def get_lr(self) -> list[float]: ...
    def get_global_grad_norm(self) -> float | Tensor | None: ...
    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None: ...
    def zero_optimization_stage(self) -> int: ...
