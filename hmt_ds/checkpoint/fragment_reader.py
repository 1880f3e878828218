"""Read ranges of weights and optimizer states from the files of a checkpoint."""

from collections import defaultdict
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from hmt_ds.checkpoint.files import CURE, CheckpointError, read_manifest
from hmt_ds.checkpoint.fragments import WEIGHT, create_states, fragments
from hmt_ds.distributed.deepspeed_internals import full_shape
from hmt_ds.distributed.process_group import all_gather_object
from hmt_ds.parallel.pipeline.build_stage import STAND_IN
from hmt_ds.parallel.protocols import Reader


class FragmentReader:
    """Reads ranges of weights and optimizer states from a checkpoint, each of whose files holds only some ranges.

    Args:
        checkpoint: folder of the checkpoint.
    """

    def __init__(self, checkpoint: Path):
        self.checkpoint = checkpoint
        self.parts: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
        self.shapes: dict[str, list[int]] = {}
        self.keys: set[str] = set()
        for file, entry in read_manifest(checkpoint).items():
            for name, start, numel, keys, shape in entry.get("fragments", ()):
                self.parts[name].append((start, numel, file))
                self.shapes[name] = shape
                self.keys.update(keys)

    def fill(self, reader: Reader, *, states: bool) -> None:
        """Read this rank's part of all trained weights, and optionally of their optimizer states, into the model's
        tensors.

        Args:
            reader: the model in an engine.
            states: whether to read optimizer states as well.

        Raises:
            CheckpointError: if weights or states of the model and the checkpoint differ in name or shape.
        """
        engine = reader.engine
        if states:
            create_states(engine)
        own = list(fragments(engine, rank=reader.data_rank, world_size=reader.data_ranks, to_write=False))
        own = [fragment for fragment in own if fragment.name != STAND_IN]
        self.check(trained_weights(reader), states, {key for fragment in own for key in fragment.tensors})
        for fragment in own:
            for key, tensor in fragment.tensors.items():
                if key == WEIGHT or states:
                    self.read(key, fragment.name, fragment.start, tensor)

    def check(self, trained: dict[str, list[int]], states: bool, keys: set[str]) -> None:
        """Check that a model's trained weights, their shapes and the optimizer's states are those of the checkpoint.

        Args:
            trained: shapes of the model's trained weights, by name.
            states: whether optimizer states are to be read.
            keys: names of the optimizer's elementwise states, such as ``exp_avg``.

        Raises:
            CheckpointError: they differ; the message has the first three differences.
        """
        problems = [f"{name} is missing in the checkpoint" for name in trained.keys() - self.shapes.keys()]
        problems += [
            f"{name} is trained in the checkpoint, but not by the recipe"
            for name in self.shapes.keys() - trained.keys()
        ]
        for name in trained.keys() & self.shapes.keys():
            if trained[name] != self.shapes[name]:
                problems.append(
                    f"{name} has the shape {self.shapes[name]} in the checkpoint, {trained[name]} by the recipe"
                )
        if states and keys and keys != self.keys:
            problems.append(
                f"the optimizer's states are {sorted(self.keys)} in the checkpoint, {sorted(keys)} by the recipe"
            )
        if problems:
            more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
            said = "; ".join(sorted(problems)[:3])
            raise CheckpointError(
                f"{self.checkpoint} does not fit the recipe: {said}{more}: set the model, memory and optimizer that it "
                "was trained with, or start a new run"
            )

    def read(self, key: str, name: str, start: int, into: Tensor) -> None:
        """Read a range of a flattened weight, or of one of its optimizer states, from the checkpoint's files.

        Args:
            key: ``weight``, or the name of an optimizer state, such as ``exp_avg``.
            name: name of the weight in the model.
            start: index in the flattened weight at which the range starts.
            into: flat tensor ``[elements of the range]`` to fill.

        Raises:
            CheckpointError: if the checkpoint lacks a part of the range.
        """
        end, done = start + into.numel(), 0
        for first, numel, file in self.parts[name]:
            # the overlap of the stored part with the range
            begin, stop = max(start, first), min(end, first + numel)
            if begin < stop:
                with safe_open(self.checkpoint / file, framework="pt") as saved:
                    part = saved.get_slice(f"{key}/{name}@{first}")[begin - first : stop - first]
                into[begin - start : stop - start].copy_(part)
                done += stop - begin
        if done != into.numel():
            raise CheckpointError(
                f"{self.checkpoint} is incomplete: it has {done} of {into.numel()} elements of {key} of {name}{CURE}"
            )


def trained_weights(reader: Reader) -> dict[str, list[int]]:
    """Return the shapes of all trained weights by name, over all pipeline stages. All ranks must call it.

    Args:
        reader: the model in its engine.
    """
    own = {
        name: list(full_shape(p))
        for name, p in reader.engine.module.named_parameters()
        if p.requires_grad and name != STAND_IN
    }
    every = all_gather_object(own) if reader.stages > 1 else [own]
    return {name: shape for stage in every for name, shape in stage.items()}
