"""On a GPU: captured and compiled readings give the gradients of plain ones. Run by hand: pytest -m gpu tests/gpu."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from hmt_ds.distributed.process_group import join
from hmt_ds.memory import MemorySettings, Window
from hmt_ds.parallel.build_engine import ExecutorOptions
from hmt_ds.parallel.build_hmt import build_hmt
from hmt_ds.parallel.compute_choice import ComputeSettings
from hmt_ds.parallel.deepspeed_config.fill import EngineSettings, fill_ds_config, read_ds_config
from hmt_ds.parallel.zero import ZeroExecutor

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
L, DEPTH, ROWS, STEPS = 32, 6, 2, 6  # the second step is measured, the third compiles, the fourth is captured
SHORT, FIXED = 4, (DEPTH,) * STEPS
BACKBONE = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.06,
}
MEMORY = MemorySettings(segment_length=L, recall_dim=64, sensory_tokens=4, cached_memories=8)
ADAPTED = replace(MEMORY, interface="adapted", recalled_memories=2, recall_loss=0.3)


def windows(depths: tuple[int, ...]) -> list[Window]:
    """Documents that begin and end inside of windows, one window a step."""
    torch.manual_seed(3)
    found = []
    for depth in depths:
        ids = torch.randint(512, (ROWS, depth, L + 1))
        starts = torch.rand(ROWS, depth) < 0.2
        lengths = torch.full((ROWS, depth), L)
        lengths[0, 2] = 5
        labels = torch.where(torch.arange(L) < lengths[:, :, None], ids[:, :, 1:], -100)
        # targets of all kinds: none, the last memory, older and forgotten ones
        found.append(Window(ids[:, :, :-1], labels, lengths, starts, targets=ids[:, :, 0] % 10))
    return found


def gradients(
    precision: str,
    config: str,
    depths: tuple[int, ...] = FIXED,
    memory: MemorySettings = MEMORY,
    *,
    asked: bool = True,
    **compute: object,
) -> list[dict[str, torch.Tensor]]:
    """The sums of every step, before they are handed to DeepSpeed; the weights stay as they are.

    Args:
        asked: whether the windows have targets.
        depths: of the step's window; 0 is a short one of a random depth, others begin a stage where they change.
    """
    settings = EngineSettings(precision, ROWS, 1, 0.0, "AdamW", {"lr": 0.0, "weight_decay": 0.0})
    ds_config = fill_ds_config(read_ds_config(f"ds_configs/{config}.json"), settings)
    device = torch.device("cuda", 0)
    model = build_hmt(BACKBONE, memory, ds_config=ds_config, precision=precision, device=device, seed=1)
    names = [name for name, _ in model.named_parameters()]
    chosen = ComputeSettings(reduction="step", **compute)
    executor = ZeroExecutor(model, ExecutorOptions(ds_config, precision, device, depths[0], chosen))
    found, deliver = [], executor.gradients.deliver

    def look_and_deliver() -> None:
        sums = executor.gradients.sums
        found.append({n: sums[a].clone() for n, a in zip(names, executor.gradients.aliases, strict=True)})
        deliver()

    executor.gradients.deliver = look_and_deliver
    for depth, window in zip(depths, windows(tuple(depth or SHORT for depth in depths)), strict=True):
        if depth not in (0, executor.budget.depth):
            executor.budget.plan_for(depth)
        executor.train_batch([window if asked else replace(window, targets=None)])
    assert (executor.gradients.replays is not None) == (compute["cuda_graphs"] == "always")
    executor.engine.destroy()
    return found


@cache
def plain_gradients(
    precision: str,
    config: str,
    depths: tuple[int, ...] = FIXED,
    memory: MemorySettings = MEMORY,
    asked: bool = True,
) -> list[dict[str, torch.Tensor]]:
    """Eager gradients, with which every other mode is compared; cached for the tests that share them."""
    plain = {"kernels": "plain", "cuda_graphs": "never", "recompute": "segment", "summary_batch": 1}
    return gradients(precision, config, depths, memory, asked=asked, **plain)


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest relative difference of any gradient."""
    largest = max(float(g.norm()) for g in other.values())
    # the gradient of a weight that is one number, a sum of terms of both signs, may be near zero
    floors = {n: (1e-6 if g.numel() > 1 else 1e-3) * largest for n, g in other.items()}
    return max(float((one[n] - g).norm()) / max(float(g.norm()), floors[n]) for n, g in other.items())


# every pair of two values of different settings; all triples would take twice as long
PAIRS = [
    *[("zero0", "auto", "compile"), ("zero0", "none", "plain"), ("zero0", "segment", "compile")],
    *[("zero1", "auto", "plain"), ("zero1", "none", "compile"), ("zero1", "segment", "compile")],
    *[("zero2", "auto", "compile"), ("zero2", "none", "compile"), ("zero2", "segment", "plain")],
]


@pytest.mark.parametrize(("config", "recompute", "kernels"), PAIRS)
def test_fp32(config, recompute, kernels):
    join()
    torch.backends.cuda.matmul.allow_tf32 = False
    plain = plain_gradients("fp32", config)
    other = gradients("fp32", config, kernels=kernels, cuda_graphs="always", recompute=recompute, summary_batch=3)
    assert len(plain) == STEPS
    for step, (one, expected) in enumerate(zip(other, plain, strict=True)):
        assert distance(one, expected) < 1e-4, (step, distance(one, expected))


@pytest.mark.parametrize("kernels", ["plain", "compile"])
@pytest.mark.parametrize(
    ("memory", "asked"),
    [
        (ADAPTED, True),
        (ADAPTED, False),
        (replace(MEMORY, interface="adapted"), True),
        (replace(MEMORY, interface="adapted", mode="rmt", last_memories=3), True),
        (replace(MEMORY, interface="adapted", mode="backbone"), True),
    ],
    ids=["recall loss", "no targets", "hmt", "rmt", "backbone"],
)
def test_the_adapted_interface(memory, asked, kernels):
    """Targets are inputs of a captured graph: each replay has its own."""
    join()
    torch.backends.cuda.matmul.allow_tf32 = False
    plain = plain_gradients("fp32", "zero2", FIXED, memory, asked)
    other = gradients("fp32", "zero2", FIXED, memory, asked=asked, kernels=kernels, cuda_graphs="always")
    for step, (one, expected) in enumerate(zip(other, plain, strict=True)):
        assert distance(one, expected) < 1e-4, (step, distance(one, expected))
    if memory.recall_loss and asked:  # without the recall's loss its gradient is another: the targets count
        without = plain_gradients("fp32", "zero2", FIXED, memory, asked=False)
        assert distance(plain[-1], without[-1]) > 0.1


@pytest.mark.parametrize("kernels", ["plain", "compile"])
def test_a_depth_schedule_and_random_depths(kernels):
    """Graphs captured for one depth are dropped at the next; shorter windows replay them, or run before the capture."""
    join()
    torch.backends.cuda.matmul.allow_tf32 = False
    depths = (*(SHORT,) * 6, *(DEPTH,) * 3, 0, *(DEPTH,) * 2, 0, DEPTH)
    plain = plain_gradients("fp32", "zero2", depths)
    other = gradients("fp32", "zero2", depths, kernels=kernels, cuda_graphs="always", recompute="auto")
    for step, (one, expected) in enumerate(zip(other, plain, strict=True)):
        assert distance(one, expected) < 1e-4, (step, distance(one, expected))


@pytest.mark.parametrize("config", ["zero0", "zero2"])
@pytest.mark.parametrize("kernels", ["liger", "compile"])
def test_bf16(config, kernels):
    """Within what bf16 rounds away, which plain kernels in bf16 show against plain kernels in fp32."""
    join()
    torch.backends.cuda.matmul.allow_tf32 = False
    exact, plain = plain_gradients("fp32", config), plain_gradients("bf16", config)
    other = gradients("bf16", config, kernels=kernels, cuda_graphs="always" if kernels == "compile" else "never")
    for one, usual, expected in zip(other, plain, exact, strict=True):
        whole = [torch.cat([(g[n] - e).flatten() for n, e in expected.items()]).norm() for g in (one, usual)]
        assert whole[0] < 1.5 * whole[1], whole
