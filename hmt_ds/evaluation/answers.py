"""Count right answers: an answer is right if each of its tokens has the largest logit, given the tokens before it.

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
    """Return 1.0 for each position whose label does not have the largest logit, else 0.0; takes the place of
    cross-entropy.

    Args:
        logits: ``[positions, vocabulary]``.
        labels: ``[positions]`` token ids; -100 gives 0.0.

    Returns:
        ``[positions]`` float32.
    """
    return ((logits.argmax(dim=-1) != labels) & (labels != IGNORED)).float()


@contextmanager
def counting_misses(reader: Reader) -> Iterator[None]:
    """Make the losses of a model counts of wrong tokens within the ``with`` block, in place of cross-entropies.

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
    """Return for each document 1.0 if no token of its answer is wrong, else 0.0.

    Args:
        found: counts of wrong tokens, from :func:`counting_misses`.

    Returns:
        A number for each document, in their order, by the memories that it was read with: ``own``, ``swapped`` (another
        document's) or ``none``. Documents that were not read in such a way are left out.
    """
    counts = {name: (found.losses[name].sum(axis=(1, 2)), found.tokens[name].sum(axis=(1, 2))) for name in found.losses}
    return {name: [float(n == 0) for n in wrong[asked > 0]] for name, (wrong, asked) in counts.items()}
