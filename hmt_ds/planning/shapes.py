"""The sizes of Llama's backbones, for estimates without a configuration at hand."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """A backbone like Llama's; the names are those of its configuration.

    Attributes:
        key_value_share: key and value heads by query heads.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    vocab_size: int = 32000
    key_value_share: float = 1.0

    @property
    def layer_parameters(self) -> int:
        """Queries and outputs, keys and values, three matrices of the MLP, two norms."""
        dim = self.hidden_size
        return round(2 * dim * dim * (1 + self.key_value_share)) + 3 * dim * self.intermediate_size + 2 * dim

    @property
    def head_parameters(self) -> int:
        """Of the head, and of the embedding, which is not tied to it."""
        return self.vocab_size * self.hidden_size

    @property
    def parameters(self) -> int:
        """All, the last norm included."""
        return self.num_hidden_layers * self.layer_parameters + 2 * self.head_parameters + self.hidden_size


SHAPES = {  # Llama 2's (arXiv 2307.09288 and its configurations)
    "7b": ModelShape(4096, 11008, 32),
    "13b": ModelShape(5120, 13824, 40),
    "70b": ModelShape(8192, 28672, 80, key_value_share=1 / 8),
}
