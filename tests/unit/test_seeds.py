"""Seeds of dropout: different on each rank, except where all ranks must drop the same layers."""

from types import SimpleNamespace

import pytest
import torch
from test_backbones import OPT
from tiny import LLAMA, make_model

from hmt_ds.training import build
from hmt_ds.training.build import seed_dropout

RANKS, SEEDS = 8, (0, 1, 42)


@pytest.mark.parametrize(
    ("backbone", "different"),
    [(LLAMA, RANKS), (OPT | {"model_type": "opt"}, RANKS), (OPT | {"model_type": "opt", "layerdrop": 0.1}, 1)],
    ids=["llama", "opt", "opt, layerdrop"],
)
def test_each_rank_draws_its_own(monkeypatch, backbone, different):
    """Also on a CPU, whose generator uses only 32 bits of a seed."""
    executor = SimpleNamespace(engine=SimpleNamespace(module=make_model(backbone)))
    drawn = {}
    for seed in SEEDS:
        for number in range(RANKS):
            monkeypatch.setattr(build, "rank", lambda number=number: number)
            seed_dropout(executor, seed)
            drawn[seed, number] = tuple(torch.rand(4).tolist())
            seed_dropout(executor, seed)
            assert drawn[seed, number] == tuple(torch.rand(4).tolist())
        assert len({drawn[seed, number] for number in range(RANKS)}) == different
    assert len(set(drawn.values())) == different * len(SEEDS)
