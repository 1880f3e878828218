"""Count right answers: those whose tokens all have the largest logit, with the tokens before them given.

Greedy decoding after the question then begins with the right answer. No logits are kept: in place of the cross-entropy
each token has a loss of 0 or 1, so losses are counts of wrong tokens, also on pipelines.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from hmt_ds.evaluation.losses import DocumentLosses
from hmt_ds.memory import IGNORED
from hmt_ds.parallel.protocols import Reader


def misses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return 1.0 for each position whose label does not have the largest logit, else 0.0: ``[positions]``.

    Args:
        logits: ``[positions, vocabulary]``.
        labels: ``[positions]`` token ids; -100 gives 0.0.
    """
    return ((logits.argmax(dim=-1) != labels) & (labels != IGNORED)).float()


@contextmanager
def counting_misses(reader: Reader) -> Iterator[None]:
    """Let the losses of a reader be counts of wrong tokens within the ``with`` block, in place of cross-entropies.

    Args:
        reader: the model in its engine.
    """
    model = reader.engine.module
    usual = model.cross_entropy
    model.cross_entropy = misses
    try:
        yield
    finally:
        model.cross_entropy = usual


def right_answers(found: DocumentLosses) -> dict[str, list[float]]:
    """Return for each way of reading 1.0 for every document without a wrong token, and 0.0 for every other one.

    Args:
        found: counts of wrong tokens, from :func:`counting_misses`.

    Returns:
        A number for each document that was read that way, in their order; documents that were not are left out.
    """
    counts = {name: (found.losses[name].sum(axis=(1, 2)), found.tokens[name].sum(axis=(1, 2))) for name in found.losses}
    return {name: [float(n == 0) for n in wrong[asked > 0]] for name, (wrong, asked) in counts.items()}
