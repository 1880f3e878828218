"""Groups of decoder layers that ZeRO-3 gathers at once, so that its hooks run once per group, not once per module."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig

from hmt_ds.backbones import CausalLM
from hmt_ds.backbones.compute import decoder_layers
from hmt_ds.backbones.families import FAMILIES
from hmt_ds.distributed.deepspeed_internals import gather_function, mark_leaf
from hmt_ds.distributed.engine import Engine
from hmt_ds.memory import HMT


def group_layers(backbone: CausalLM, group_size: int) -> None:
    """Let ZeRO-3 gather a decoder's layers in groups, so that its hooks run once per group; parameters keep their
    names.

    Args:
        backbone: the backbone, changed in place before DeepSpeed wraps it.
        group_size: number of layers in a group.
    """
    module, name = decoder_layers(backbone)
    setattr(module, name, LayerGroups(getattr(module, name), group_size))


def can_group_layers(config: PretrainedConfig) -> bool:
    """Return whether ZeRO-3 can gather a model's layers in groups.

    Each layer must return one tensor, and none may be dropped at random (layerdrop).

    Args:
        config: the model's configuration.
    """
    return config.model_type in FAMILIES and not getattr(config, "layerdrop", 0)


class LayerGroups(nn.ModuleList):
    """List of decoder layers that are run, and gathered by ZeRO-3, several at a time (a group).

    The registered members are the layers, so parameters keep their names. DeepSpeed, which looks for modules in
    ``children``, puts its hooks into the groups. A decoder that iterates over the list gets a :class:`LayerCall` for
    each layer, which only records the call; the call of a group's last layer runs the group.
    """

    def __init__(self, layers: nn.ModuleList, group_size: int):
        super().__init__(layers)
        members = list(layers)
        starts = range(0, len(members), group_size)
        # a plain list, so that the groups are not registered as modules and parameters keep their names
        self.groups = [LayerGroup(members[start : start + group_size]) for start in starts]

    def prefetch_with(self, engine: Engine[HMT]) -> None:
        """Let each group of layers prefetch the next group's weights in the forward pass, and the previous one's in the
        backward pass.

        DeepSpeed's own prefetching follows a recorded trace of modules. Here forward passes with and without a graph,
        on inputs of two lengths, take turns, so DeepSpeed would invalidate and record its trace all the time.

        Args:
            engine: DeepSpeed's engine at ZeRO-3, which gathers the weights.
        """
        gather = gather_function(engine)
        for group, after in zip(self.groups[:-1], self.groups[1:], strict=True):
            group.prefetch_next = partial(gather, set(after.parameters()), True)
            after.prefetch_previous = partial(gather, set(group.parameters()), False)

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the groups of layers by name, instead of the single layers: DeepSpeed looks here for the modules to
        gather."""
        return ((f"group_{number}", group) for number, group in enumerate(self.groups))

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """Yield the layers with their submodules, and the groups (which have no parameters of their own).

        Args:
            memo, prefix, remove_duplicate: as for ``nn.Module.named_modules``.
        """
        yield from super().named_modules(memo, prefix, remove_duplicate)
        yield from ((f"{prefix}.{name}", group) for name, group in self.named_children())

    def __iter__(self) -> Iterator[Any]:
        for group in self.groups:
            for layer in group.layers:
                yield LayerCall(group, layer)

    def __getitem__(self, index: int | slice) -> Any:
        """Return the layer at an index; for a slice of the whole list, a recorder of calls for each layer."""
        if isinstance(index, slice):
            calls = list(self)
            assert len(calls[index]) == len(calls), "a group of layers runs as a whole"
            return calls
        return super().__getitem__(index)


class LayerGroup(nn.Module):
    """Consecutive decoder layers that ZeRO-3 gathers and releases together.

    Args:
        layers: the layers.
    """

    def __init__(self, layers: list[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        mark_leaf(self)
        self.calls: list[Callable[[Tensor], Tensor]] = []
        self.prefetch_next: Callable[[], None] = lambda: None
        self.prefetch_previous: Callable[[], None] = lambda: None

    def forward(self, hidden: Tensor) -> Tensor:
        """Run the group's layers one after another, each with the further arguments that its recorded call had.

        Args:
            hidden: hidden states ``[batch, positions, dim]``.
        """
        calls, self.calls = self.calls, []
        self.prefetch_next()
        for call in calls:
            hidden = call(hidden)
        if hidden.requires_grad:
            # runs after DeepSpeed's own hook, which gathers this group
            hidden.register_hook(lambda gradient: self.prefetch_previous())
        return hidden


class LayerCall:
    """Stand-in for a layer while a decoder iterates over its layers: records the call instead of running the layer.

    The call of the last layer of a group runs all layers of the group.

    Args:
        group: the layer's group.
        layer: the layer.
    """

    def __init__(self, group: LayerGroup, layer: nn.Module):
        self.group, self.layer = group, layer

    def __call__(self, hidden: Tensor, *arguments: object, **options: object) -> Tensor:
        self.group.calls.append(lambda given: self.layer(given, *arguments, **options))
        return self.group(hidden) if self.layer is self.group.layers[-1] else hidden

    def __getattr__(self, name: str) -> object:
        return getattr(self.layer, name)
