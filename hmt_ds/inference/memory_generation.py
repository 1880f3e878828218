"""transformers' ``generate`` for HMT models, with a cache that holds memories."""

import copy
from typing import Any

from torch import Tensor
from transformers import GenerationMixin

from hmt_ds.inference.segment_cache import SegmentCache


class MemoryGenerationMixin(GenerationMixin):  # transformers looks for the end of this name among a model's bases
    """Mixin that gives an HMT model transformers' ``generate``, with a cache that holds memories (``SegmentCache``)."""

    def generate(self, inputs: Tensor | None = None, generation_config: Any = None, **options: Any) -> Any:
        """Continue documents with transformers' ``generate`` and all its options, with memories of earlier segments.

        Args:
            inputs: token ids ``[batch, tokens]`` of the documents.
            generation_config: transformers' settings; None for the model's own.
            options: further arguments of transformers' ``generate``, such as ``max_new_tokens``.

        Returns:
            What transformers returns: by default token ids ``[batch, tokens]``, those of ``inputs`` and the new ones
            behind them.

        Raises:
            ValueError: ``cache_implementation`` asks for another kind of cache, or ``assistant_early_exit`` is given.
        """
        config = generation_config or self.generation_config
        if layers := options.get("assistant_early_exit", config.assistant_early_exit):
            raise ValueError(
                f"assistant_early_exit={layers} is not supported: pass assistant_model=model.backbone_model or "
                "prompt_lookup_num_tokens instead"
            )
        kind = options.pop("cache_implementation", None) or config.cache_implementation
        if kind not in (None, "dynamic", "dynamic_full"):
            raise ValueError(
                f"cache_implementation={kind!r} cannot hold the memories of an "
                "HMT model: leave cache_implementation out"
            )
        if config.cache_implementation is not None:  # transformers 5.0 asks its assistants for one
            generation_config = copy.deepcopy(config)
            generation_config.cache_implementation = None
        if options.get("use_cache", config.use_cache) is not False and options.get("past_key_values") is None:
            options["past_key_values"] = SegmentCache()
        return super().generate(inputs, generation_config, **options)

    def prepare_inputs_for_generation(self, *arguments: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the arguments of the next forward pass as transformers prepares them, but without ``position_ids``.

        transformers counts positions wrongly after right padding; the model counts them itself.

        Args:
            arguments, kwargs: transformers' arguments of the method of the same name.
        """
        inputs = super().prepare_inputs_for_generation(*arguments, **kwargs)
        inputs.pop("position_ids", None)
        return inputs

    @property
    def init_continuous_batching(self) -> Any:
        """Raise AttributeError when accessed, so that ``transformers serve`` does not use continuous batching.

        Continuous batching would call the backbone without the memory.
        """
        raise AttributeError
