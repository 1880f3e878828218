"""On a GPU: several ranks through NCCL give the gradients of one process. Run by hand: pytest -m gpu tests/gpu.

They share one GPU, so that one is enough; NCCL believes that each is on a machine of its own.
"""

import pytest
import ring_gradients
import torch
import zero_gradients

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
RING = {
    "2 stages": [
        ring_gradients.Case(2, 1, 2, 4),
        ring_gradients.Case(2, 1, 5, 1, "rmt", "lora"),
        ring_gradients.Case(2, 1, 3, 2, mode="backbone"),
        ring_gradients.Case(2, 1, 5, 2, spill=True),
    ],
    "3 stages": [ring_gradients.Case(3, 1, 5, 4), ring_gradients.Case(3, 1, 1, 1, "rmt")],
    "2 x 2": [ring_gradients.Case(2, 2, 2, 2, accumulation=2)],
}
ZERO = [
    zero_gradients.Case("zero1", reduction="step"),
    zero_gradients.Case("zero2", reduction="step", recompute="none"),
    zero_gradients.Case("zero2"),
    zero_gradients.Case("zero3"),
    zero_gradients.Case("zero3", recompute="segment", summary_batch=3, leaf_layers=2),
    zero_gradients.Case("zero3", "lora", reduction="step", summary_batch=2),
    zero_gradients.Case("zero3_offload", leaf_layers=2),
]


@pytest.mark.parametrize("cases", RING.values(), ids=RING)
def test_ring(cases):
    for row in ring_gradients.run_cases(cases, one_gpu=True):
        print(row["case"], {key: row[key] for key in ("gradient", "weights", "loss", "norm")})
        assert row["gradient"] < 1e-5 and row["weights"] < 1e-5 and row["norm"] < 1e-5, row
        assert not row["apart"], "tied weights have drifted apart"


def test_zero():
    for row in zero_gradients.run_cases(ZERO, one_gpu=True):
        print(row["case"], {key: row[key] for key in ("gradient", "weights", "loss", "norm")})
        assert row["gradient"] < 1e-5 and row["weights"] < 1e-5 and row["norm"] < 1e-5, row
        assert row["moved"] == [] and row["still"] == [] and row["asleep"] == [], row
