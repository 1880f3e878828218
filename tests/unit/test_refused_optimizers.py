"""The reasons for which optimizers are refused still hold in the installed DeepSpeed; if not, allow them."""

import pytest
import torch

from hmt_ds.parallel.deepspeed_config.optimizer import OptimizerError, check_optimizer


@pytest.mark.parametrize(
    ("name", "stage", "reason"),
    [
        ("Muon", 0, "changes weights in skipped steps too"),
        ("muon", 2, "clipped, so the update would be clipped (ZeRO stage 2)"),
        ("MuAdamW", 0, "the base shapes of the package mup"),
        ("AdamW8bit", 0, "no run could be resumed exactly"),
        ("PagedAdamW32bit", 2, "no run could be resumed exactly"),
        ("paged_adamw_8bit", 1, "no run could be resumed exactly"),
    ],
)
def test_one_line_says_why(name, stage, reason):
    with pytest.raises(OptimizerError, match=r"use AdamW$") as error:
        check_optimizer(name, 1e-3, 0.0, {}, stage)
    assert str(error.value).startswith(f"optimizer.name: {name}: ") and reason in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("gradient", [True, False])
def test_muon_moves_weights_without_a_gradient(monkeypatch, gradient):
    """As in a skipped step; with it, a torch optimizer would change nothing."""
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    weight = torch.nn.Parameter(torch.ones(4, 3))
    group = {"params": [weight], "use_muon": True, "lr": 0.1, "momentum": 0.9, "weight_decay": 0.0}
    optimizer = MuonWithAuxAdam([group])
    weight.grad = torch.arange(12.0).view(4, 3)
    optimizer.step()
    before = weight.detach().clone()
    weight.grad = torch.arange(12.0).view(4, 3) if gradient else None
    optimizer.step()
    assert not torch.equal(weight, before)
