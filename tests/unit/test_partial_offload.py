"""The two optimizers of a partly offloaded one share groups and states: schedules and checkpoints see one of them."""

from types import SimpleNamespace

import pytest
import torch

from hmt_ds.distributed.deepspeed_internals import join_offloaded_parts, optimizer_for


class OnHost(torch.optim.SGD):
    """An optimizer with the groups and states of DeepSpeed's CPU Adam: fewer keys than torch's."""

    def __init__(self, decoupled: bool):
        self.adam_w_mode = decoupled
        super().__init__([{"params": [], "lr": 0.5}, {"params": [], "lr": 0.5}], lr=0.5)
        for group in self.param_groups:
            kept = {"params": [], "lr": 0.5, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
            group.clear()
            group.update(kept)


def engine_with(optimizer: SimpleNamespace) -> SimpleNamespace:
    """An engine at stage 3."""
    return SimpleNamespace(optimizer=optimizer, zero_optimization_stage=lambda: 3)


def partly_offloaded(decoupled: bool = True) -> SimpleNamespace:
    """An optimizer as DeepSpeed makes it: the first group on the GPU is its own, the others are the host's."""
    on_host = OnHost(decoupled)
    on_gpu = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.5, betas=(0.9, 0.95), weight_decay=0.1)
    on_gpu.add_param_group(on_host.param_groups[1] | {"params": [torch.nn.Parameter(torch.zeros(1))]})
    return SimpleNamespace(optimizer=on_host, backup_optimizer=on_gpu)


@pytest.mark.parametrize("decoupled", [True, False], ids=["AdamW", "Adam"])
def test_a_step_on_the_gpu(decoupled):
    """It uses the schedule's learning rate and leaves its states where checkpoints find them."""
    optimizer, kind = partly_offloaded(decoupled), torch.optim.AdamW if decoupled else torch.optim.Adam
    join_offloaded_parts(engine_with(optimizer))
    flat, alone = (torch.nn.Parameter(torch.ones(5)) for _ in range(2))
    expected = kind([alone], lr=0.5, betas=(0.9, 0.95), weight_decay=0.1)
    for rate in (0.3, 0.2):
        for group in (*optimizer.optimizer.param_groups, *expected.param_groups):
            group["lr"] = rate
        flat.grad = alone.grad = torch.arange(5.0)
        optimizer.backup_optimizer.param_groups[0]["params"] = [flat]
        optimizer.backup_optimizer.step()
        expected.step()
        assert torch.equal(flat, alone)
        assert torch.equal(optimizer.optimizer.state[flat]["exp_avg_sq"], expected.state[alone]["exp_avg_sq"])


def test_which_part_steps():
    optimizer, whole = partly_offloaded(), SimpleNamespace(optimizer="all")
    assert optimizer_for(engine_with(optimizer), torch.zeros(1)) is optimizer.optimizer
    assert optimizer_for(engine_with(optimizer), torch.zeros(1, device="meta")) is optimizer.backup_optimizer
    assert optimizer_for(engine_with(whole), torch.zeros(1, device="meta")) == "all"
    join_offloaded_parts(engine_with(whole))
