"""Sizes of Llama models, for estimates that have no configuration file."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a Llama model, named as in its configuration.

    Attributes:
        hidden_size: width of the hidden states.
        intermediate_size: width of the MLP.
        num_hidden_layers: number of decoder layers.
        vocab_size: number of token ids.
        key_value_share: number of key and value heads per query head; 1 without grouped-query attention.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    vocab_size: int = 32000
    key_value_share: float = 1.0

    @property
    def layer_parameters(self) -> int:
        """Number of parameters of a decoder layer: query and output, key and value, three MLP matrices, two norms."""
        dim = self.hidden_size
        return round(2 * dim * dim * (1 + self.key_value_share)) + 3 * dim * self.intermediate_size + 2 * dim

    @property
    def head_parameters(self) -> int:
        """Number of parameters of the output head; the untied token embedding has as many."""
        return self.vocab_size * self.hidden_size

    @property
    def parameters(self) -> int:
        """Number of parameters of the whole Llama model, embeddings and head included."""
        return self.num_hidden_layers * self.layer_parameters + 2 * self.head_parameters + self.hidden_size


SHAPES = {  # Llama 2's (arXiv 2307.09288 and its configurations)
    "7b": ModelShape(4096, 11008, 32),
    "13b": ModelShape(5120, 13824, 40),
    "70b": ModelShape(8192, 28672, 80, key_value_share=1 / 8),
}
