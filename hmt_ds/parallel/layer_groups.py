"""ZeRO-3's unit of gathering: runs of layers, so that its hooks run once for several layers and not for each module."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn

from hmt_ds.backbones import CausalLM
from hmt_ds.backbones.compute import decoder_layers
from hmt_ds.backbones.families import FAMILIES
from hmt_ds.distributed.deepspeed_internals import gather_function, mark_leaf
from hmt_ds.distributed.engine import Engine
from hmt_ds.memory import HMT


def group_layers(backbone: CausalLM, per_leaf: int) -> None:
    """Let ZeRO-3 gather the decoder's layers in runs of so many; names of parameters stay as they are."""
    module, name = decoder_layers(backbone)
    setattr(module, name, LayerGroups(getattr(module, name), per_leaf))


def can_run_together(config: Any) -> bool:
    """Whether layers can be called in runs: they must hand on a tensor and nothing else, and none may be left out."""
    return config.model_type in FAMILIES and not getattr(config, "layerdrop", 0)


class LayerGroups(nn.ModuleList):
    """A list of layers whose members are called in runs.

    Its registered members are the layers, so parameters keep their names. Whoever walks the tree by ``children``, as
    DeepSpeed does to put its hooks, finds the runs instead. Whoever iterates, as decoders do, gets a caller for each
    layer: it notes the call, and the last caller of a run calls the run.
    """

    runs: "list[LayerGroup]"

    def __init__(self, layers: nn.ModuleList, per_leaf: int):
        super().__init__(layers)
        members = list(layers)
        starts = range(0, len(members), per_leaf)
        runs = [LayerGroup(members[start : start + per_leaf]) for start in starts]
        object.__setattr__(self, "runs", runs)  # past nn.Module, which would register them

    def gather_ahead(self, engine: Engine[HMT]) -> None:
        """Let each run start the gathering of the one after it, and in the backward pass of the one before it.

        DeepSpeed's own prefetching follows a trace, of one sequence of modules. Here several take turns (summaries,
        segments with and without a graph), so that its trace is dropped and made anew all the time.
        """
        gather = gather_function(engine)
        for run, after in zip(self.runs[:-1], self.runs[1:], strict=True):
            run.gather_next = partial(gather, set(after.parameters()), True)
            after.gather_previous = partial(gather, set(run.parameters()), False)

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """The runs."""
        return ((f"run_{number}", run) for number, run in enumerate(self.runs))

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """The layers and what is in them, and the runs, which have no parameters of their own."""
        yield from super().named_modules(memo, prefix, remove_duplicate)
        yield from ((f"{prefix}.{name}", run) for name, run in self.named_children())

    def __iter__(self) -> Iterator[Any]:
        for run in self.runs:
            for layer in run.layers:
                yield LayerCall(run, layer)

    def __getitem__(self, index: int | slice) -> Any:
        """The layer at an index; the callers for a slice, which must be all."""
        if isinstance(index, slice):
            callers = list(self)
            assert len(callers[index]) == len(callers), "runs are called whole"
            return callers
        return super().__getitem__(index)


class LayerGroup(nn.Module):
    """Some consecutive layers that ZeRO-3 gathers and releases together."""

    def __init__(self, layers: list[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        mark_leaf(self)
        self.calls: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = []
        self.gather_next: Callable[[], None] = lambda: None
        self.gather_previous: Callable[[], None] = lambda: None

    def forward(self, hidden: Tensor) -> Tensor:
        """Make the calls that were noted, one after the other: ``[b, t, d]`` -> ``[b, t, d]``."""
        calls, self.calls = self.calls, []
        self.gather_next()
        for layer, arguments, options in calls:
            hidden = layer(hidden, *arguments, **options)
        if hidden.requires_grad:
            # comes after DeepSpeed's own hook, which gathers this run
            hidden.register_hook(lambda gradient: self.gather_previous())
        return hidden


class LayerCall:
    """Stands for a layer while a decoder goes through its list."""

    def __init__(self, run: LayerGroup, layer: nn.Module):
        self.run, self.layer = run, layer

    def __call__(self, hidden: Tensor, *arguments: Any, **options: Any) -> Tensor:
        self.run.calls.append((self.layer, arguments, options))
        return self.run(hidden) if self.layer is self.run.layers[-1] else hidden

    def __getattr__(self, name: str) -> Any:
        return getattr(self.layer, name)
