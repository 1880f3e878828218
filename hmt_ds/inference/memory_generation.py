"""transformers' own generation, over a cache that holds a memory."""

import copy
from typing import Any

from torch import Tensor
from transformers import GenerationMixin

from hmt_ds.inference.segment_cache import SegmentCache


class MemoryGenerationMixin(GenerationMixin):  # transformers looks for the end of this name among a model's bases
    """``generate`` of a model whose forward pass takes a :class:`SegmentCache`; loop and options are transformers'."""

    def generate(self, inputs: Tensor | None = None, generation_config: Any = None, **options: Any) -> Any:
        """Continue documents: transformers' own generation, with all its options, over a cache of this model's kind.

        Raises:
            ValueError: for another kind of cache, in one line.
        """
        config = generation_config or self.generation_config
        kind = options.pop("cache_implementation", None) or config.cache_implementation
        if kind not in (None, "dynamic", "dynamic_full"):
            raise ValueError(f"cache_implementation is {kind!r}, which cannot hold a memory: leave it out")
        if config.cache_implementation is not None:  # transformers 5.0 asks its assistants for one
            generation_config = copy.deepcopy(config)
            generation_config.cache_implementation = None
        if options.get("use_cache", config.use_cache) is not False and options.get("past_key_values") is None:
            options["past_key_values"] = SegmentCache()
        return super().generate(inputs, generation_config, **options)

    def prepare_inputs_for_generation(self, *arguments: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the arguments of the next forward pass, without positions: behind right pads it miscounts."""
        inputs = super().prepare_inputs_for_generation(*arguments, **kwargs)
        inputs.pop("position_ids", None)
        return inputs

    @property
    def init_continuous_batching(self) -> Any:
        """Be absent: transformers' continuous batching would read without memory. Its server then does without."""
        raise AttributeError
