"""A recomputation plan changes neither results nor gradients nor the final memory state."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from tiny import (
    GPT2,
    L,
    assert_same_state,
    cut,
    distance,
    document,
    empty_state,
    make_model,
    make_window,
    one_graph,
    segment_wise,
    take_gradients,
)
from torch import Tensor

from hmt_ds.memory import HMT, MemoryState, RecomputePlan, Summary, Window, backward_through_time, read_window
from hmt_ds.memory.boundaries import Boundaries

MODES = ("hmt", "rmt", "backbone")
SEGMENTS = 5
TOLERANCE = 1e-9
GRID = [RecomputePlan(*sizes) for sizes in product((1, 2, 3, SEGMENTS), (1, 2, 3, SEGMENTS), (0, 1, SEGMENTS))]
# where nothing is summarised, a plan is its kept segments
CASES = [(mode, plan) for mode in MODES for plan in GRID if mode == "hmt" or plan.summary_segments == 1]
SOME = [RecomputePlan(), RecomputePlan(2, 2, 1), RecomputePlan(1, 3), RecomputePlan.keep_all(SEGMENTS)]


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recall's softmax is float32 by design. In float64 nothing but a wrong gradient is left to be seen."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)


def make_case(mode: str, carried: bool) -> tuple[HMT, Window, MemoryState]:
    """Five segments that overflow the cache, in which rows go on, end early, and start documents in the middle.

    GPT-2, for its norms are not float32. Carried: two segments were read before, so that segment 0 has a summary.
    """
    model = make_model(GPT2, mode=mode)
    torch.manual_seed(2)
    lengths = [[7 * L], [4 * L - 1, 3 * L], [L, 2 * L + 1, 1, L + 2], [3 * L - 2], [1]]
    window, state = make_window([[document(n) for n in row] for row in lengths]), empty_state(model, 5)
    if not carried:
        return model, cut(window, 0, SEGMENTS), state
    with torch.no_grad():
        *_, (_, state) = read_window(model, model.settings, cut(window, 0, 2), state)
    return model, cut(window, 2), state


@cache
def expected(mode: str, carried: bool) -> tuple[Tensor, dict[str, Tensor], MemoryState]:
    """Loss, gradients and state by one plain graph."""
    model, window, state = make_case(mode, carried)
    loss, behind = one_graph(model, window, state)
    return loss, take_gradients(model), behind


def test_the_case_has_all_kinds_of_rows():
    """In both windows a row continues, one starts a document after segment 0, and one is empty at the end."""
    for carried in (False, True):
        _, window, state = make_case("hmt", carried)
        inside, empty = window.starts[:, 1:] & (window.lengths[:, 1:] > 0), window.lengths[:, -1] == 0
        assert len(window) == SEGMENTS and inside.any() and empty.any() and not window.starts[0, 1:].any()
        assert state.memories.shape[1] == (2 if carried else 0) and bool(state.valid.any()) == carried


@pytest.mark.parametrize("carried", [False, True], ids=["fresh", "carried"])
@pytest.mark.parametrize(("mode", "plan"), CASES, ids=str)
def test_gradients_of_one_graph(mode, plan, carried):
    """Gradients, loss and final memory state equal those of one graph over the window."""
    model, window, state = make_case(mode, carried)
    loss, gradients, behind = expected(mode, carried)
    totals, state = segment_wise(model, window, state, plan=plan)
    torch.testing.assert_close(totals.loss, loss, rtol=TOLERANCE, atol=0)
    assert distance(take_gradients(model), gradients) < TOLERANCE
    assert_same_state(state, behind, TOLERANCE)


@pytest.mark.parametrize("plan", SOME, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_weight_and_loss_scale(mode, plan):
    """With a loss scale (fp16), gradients sent to memories and queries are scaled exactly once, like all others."""
    model, window, state = make_case(mode, carried=True)
    segment_wise(
        model,
        window,
        state,
        weight=0.25,
        loss_scale=1024.0,
        backward=lambda scalar: (scalar * 1024).backward(),
        plan=plan,
    )
    scaled = {name: gradient / 256 for name, gradient in take_gradients(model).items()}
    assert distance(scaled, expected(mode, True)[1]) < TOLERANCE


class Recorder:
    """Writes down the work: s a summary, r a segment, in capitals with a graph; b a backward pass."""

    def __init__(self, model: HMT):
        self.model, self.phase = model, "none"
        self.work: list[str] = []
        self.phases: list[str] = []

    def read(self, part: Any, *arguments: Any, **options: Any) -> Any:
        name, graph = "s" if isinstance(part, Summary) else "r", torch.is_grad_enabled()
        assert name == "s" or options.get("with_loss", True) == graph, "a loss that nobody goes back from"
        self.note(name.upper() if graph else name)
        return self.model(part, *arguments, **options)

    def backward(self, scalar: Tensor) -> None:
        self.note("b")
        scalar.backward()

    def note(self, work: str) -> None:
        self.work.append(work)
        self.phases.append(self.phase)

    @contextmanager
    def enter(self, phase: str) -> Iterator[None]:
        """A phase; they do not lie in one another, or times would be counted twice."""
        assert self.phase == "none"
        self.phase = phase
        yield
        self.phase = "none"


def record(mode: str, plan: RecomputePlan, carried: bool) -> Recorder:
    """The work on four segments."""
    model = make_model(mode=mode)
    recorder, window = Recorder(model), make_window([[document(5 * L)]])
    state = empty_state(model, 1)
    if carried:
        with torch.no_grad():
            *_, (_, state) = read_window(model, model.settings, cut(window, 0, 1), state)
    part = cut(window, 1) if carried else cut(window, 0, 4)
    arguments = {"weight": 1.0, "backward": recorder.backward, "plan": plan, "phase": recorder.enter}
    backward_through_time(recorder.read, model.settings, part, state, **arguments)
    return recorder


# first all that is read before the backward passes, then segment by segment from the last, each with what follows it
ORDERS = [
    ("hmt", RecomputePlan(), False, "sss rrrR | bSb RbSb RbSb Rb"),
    ("hmt", RecomputePlan(), True, "ssss rrrR | bSb RbSb RbSb RbSb"),
    ("hmt", RecomputePlan(2), False, "sss rrRR | bSb bSb RbSb Rb"),
    ("hmt", RecomputePlan(1, 2), False, "ss rrrR | bSb Rb RbSb Rb"),
    ("hmt", RecomputePlan(1, 2), True, "ss rrrR | b RbSb Rb RbSb"),
    ("hmt", RecomputePlan(1, 3), True, "ss rrrR | bSb Rb Rb RbSb"),
    ("hmt", RecomputePlan(1, 1, 2), False, "sSS rrrR | bb Rbb RbSb Rb"),
    ("hmt", RecomputePlan(2, 2, 1), False, "sS rrRR | bb b RbSb Rb"),
    ("hmt", RecomputePlan(9, 9, 9), True, "S RRRR | b b b bb"),
    ("hmt", RecomputePlan.keep_all(4), False, "S RRRR | b b bb b"),
    ("rmt", RecomputePlan(), True, "rrrR | b Rb Rb Rb"),
    ("rmt", RecomputePlan(3), False, "rRRR | b b b Rb"),
    ("rmt", RecomputePlan.keep_all(4), False, "RRRR | b b b b"),
    ("backbone", RecomputePlan(), False, "Rb Rb Rb Rb"),
    ("backbone", RecomputePlan.keep_all(4), True, "Rb Rb Rb Rb"),
]


@pytest.mark.parametrize(("mode", "plan", "carried", "order"), ORDERS, ids=str)
def test_order_of_work(mode, plan, carried, order):
    """Kept segments run forward once; others again right before their own backward pass, as the engine requires."""
    assert "".join(record(mode, plan, carried).work) == order.translate(dict.fromkeys(map(ord, " |")))


def test_phases():
    """Every piece of work runs within the phase that its time is reported under."""
    recorder = record("hmt", RecomputePlan(2, 2, 1), carried=False)
    before = [*["summary"] * 2, *["forward"] * 4]
    behind = ["backward"] * 3 + ["recompute", "backward", "summary", "backward", "recompute", "backward"]
    assert "".join(recorder.work) == "sSrrRRbbbRbSbRb" and recorder.phases == before + behind
    assert set(record("backbone", RecomputePlan(), carried=False).phases) == {"forward", "backward"}


@pytest.fixture(scope="module")
def elsewhere() -> torch.device:
    """A second device on any machine: PyTorch's lazy tensors have values, and refuse to meet those of another."""
    from torch._lazy import ts_backend

    ts_backend.init()
    with pytest.raises(RuntimeError, match="not a lazy tensor"):
        torch.ones(2) + torch.ones(2, device="lazy")
    return torch.device("lazy")


@pytest.mark.parametrize("plan", SOME, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_window_on_another_device(mode, plan, elsewhere):
    """A window that stays on the host is run on the model's device, where the final memory state is too."""
    model, window, state = make_case(mode, carried=True)
    loss, gradients, behind = expected(mode, True)
    totals, state = segment_wise(model, window.to(elsewhere), state, plan=plan)
    torch.testing.assert_close(totals.loss, loss, rtol=TOLERANCE, atol=0)
    assert distance(take_gradients(model), gradients) < TOLERANCE
    assert_same_state(state, behind, TOLERANCE)
    assert {x.device.type for x in (totals.loss, state.memories, state.valid, state.tail)} == {"cpu"}


def test_borders_lie_with_the_window(elsewhere):
    """Both buffers, memories and gradients; what a segment sees of them is a copy on the model's device."""
    model, window, state = make_case("hmt", carried=True)
    borders = Boundaries(state, window.to(elsewhere), keep=3)
    borders.push(1, torch.ones(5, 3, 1, model.backbone.dim), scale=1.0)
    assert {x.device.type for x in (borders.memories, borders.gradients, borders.documents)} == {"lazy"}
    memories, valid = borders.before(2)
    assert memories.device.type == valid.device.type == "cpu"
    assert borders.pull(0, torch.ones(5, 1, model.backbone.dim)).device.type == "cpu"


def test_kept_graphs_do_not_see_later_memories():
    """The buffer of memories is written while graphs that read from it exist."""
    _, window, state = make_case("hmt", carried=False)
    borders = Boundaries(state, window, keep=3)
    before, _ = borders.before(1)
    borders.write(0, torch.ones_like(before[:, 0]))
    assert before.count_nonzero() == 0
