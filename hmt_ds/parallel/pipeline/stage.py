"""One stage's part of a window: forward and backward passes in the order of the schedule.

Shapes: b rows of a micro-batch, t = m + w + m positions, h hidden size, m memory tokens, d embedding width.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hmt_ds.memory import HMT, Boundaries, MemoryState, RandomState, Segment, Summary, Window
from hmt_ds.memory.bptt import Phase
from hmt_ds.memory.cell import remembers
from hmt_ds.memory.loss import weighted
from hmt_ds.memory.settings import Mode
from hmt_ds.parallel.pipeline.p2p import Channel, TensorSpec
from hmt_ds.parallel.pipeline.schedule import Item, Kind, micro_batches_of
from hmt_ds.parallel.pipeline.stashed_inputs import StashedInputs
from hmt_ds.parallel.pipeline.topology import Topology

FORWARD_PHASES = {Kind.SUMMARY: "summary", Kind.RECALL: "recall", Kind.MAIN: "forward"}


class Reading(NamedTuple):
    """An item that was read with a graph, from what the stage was given to what it hands on."""

    given: Tensor | None
    hidden: Tensor


class StagePass:
    """Runs a stage's items on the micro-batches of one window.

    Args:
        model: what the stage has of it.
        parts: the micro-batches, on the stage's device; all of as many rows.
        summarised: the same rows, in as many parts as there are summaries of a segment.
        states: what each carries into the window.
        mode: of the memory.
        hidden: h.
        dtype: of what is sent.
        inputs: keeps the stage's inputs from an item's forward to its backward pass.
        keeps: the items that keep their graphs instead, and are not read again.
        watch: put around the reading of an item (:meth:`hmt_ds.parallel.activation_budget.ActivationBudget.watch`).
        weight: factor of the loss.
        draws: whether the model draws random numbers (dropout).
        phase: a context around each item, by its name: ``summary``, ``recall`` or ``forward``; ``backward`` for all
            kinds, with what is computed again; and within them ``wait``, for a neighbour.
    """

    def __init__(
        self,
        model: HMT,
        place: Topology,
        parts: list[Window],
        summarised: list[Window],
        states: list[MemoryState],
        *,
        mode: Mode,
        hidden: int,
        dtype: torch.dtype,
        inputs: StashedInputs,
        keeps: Collection[Item] = (),
        watch: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda read: read,
        weight: float = 1.0,
        draws: bool = False,
        phase: Phase = nullcontext,
    ):
        self.model, self.place, self.parts, self.summarised, self.mode = model, place, parts, summarised, mode
        self.hidden, self.dtype, self.inputs, self.weight, self.draws = hidden, dtype, inputs, weight, draws
        self.keeps, self.phase, self.through = keeps, phase, watch(self.through_layers)
        self.readings: dict[Item, Reading] = {}
        self.settings, self.device = model.settings, parts[0].input_ids.device
        self.tails = [state.tail for state in states]
        self.m = 0 if mode == "backbone" else model.settings.memory_tokens
        # the first stage wants to know who remembers anything, the last one has the memories themselves
        self.borders = [Boundaries(s, w, model.settings.kept_memories) for s, w in zip(states, parts, strict=True)]
        self.queries: dict[tuple[int, int], Tensor] = {}
        self.query_gradients: dict[tuple[int, int], Tensor] = {}
        self.random: dict[Item, RandomState] = {}
        self.losses: dict[tuple[int, int], Tensor] = {}
        self.shares: dict[tuple[int, int], Tensor] = {}

    def run(self, order: list[Item]) -> None:
        """All items, one after the other."""
        for item in order if self.place.asks_ahead else []:
            if self.receives(item):
                self.channel(item).ask(self.shape(item))
        for item in order:
            with self.phase("backward" if item.backward else FORWARD_PHASES[item.kind]):
                (self.backward if item.backward else self.forward)(item)
        with self.phase("wait"):
            for channel in self.place.channels.values():
                channel.flush()

    def receives(self, item: Item) -> bool:
        """Whether a message belongs to an item: of the stage before or behind, or of the other end of the ring."""
        if item.kind == Kind.RECALL:
            return item.backward  # the gradient of the prompt that it has made
        if item.backward:
            return not self.place.closes
        return not self.place.opens or (item.kind == Kind.MAIN and self.mode != "backbone")

    def receive(self, item: Item) -> Tensor:
        """The message that belongs to an item."""
        with self.phase("wait"):
            return self.channel(item).receive(self.shape(item))

    def channel(self, item: Item) -> Channel:
        """Through which an item's message comes."""
        return self.place.channels["back_in" if item.backward else "in"]

    def shape(self, item: Item) -> TensorSpec:
        """Of the message that an item receives."""
        rows = len((self.summarised if item.kind == Kind.SUMMARY else self.parts)[0].lengths)
        if item.kind == Kind.RECALL or (self.place.opens and not item.backward):
            return TensorSpec((rows, self.m, self.model.backbone.dim), self.dtype)
        settings = self.settings
        width = settings.sensory_tokens + settings.segment_length
        tokens = width if item.kind == Kind.MAIN else settings.summary_length
        return TensorSpec((rows, tokens + 2 * self.m, self.hidden), self.dtype)

    def part(self, item: Item) -> Segment | Summary:
        """The tokens of an item."""
        n, b = item.segment, item.micro_batch
        if item.kind == Kind.SUMMARY:
            return self.summarised[b].summary(n, n + 1, self.settings)
        return self.parts[b].segment(n, self.tails[b], self.settings)

    def keys(self, item: Item) -> list[tuple[int, int]]:
        """Segment and micro-batch of the queries that a summary gives."""
        together = len(self.parts) // len(self.summarised)
        return [(item.segment, b) for b in micro_batches_of(item, together)]

    def forward(self, item: Item) -> None:
        """An item's forward pass: its input is kept, its output goes on."""
        if item.kind == Kind.RECALL:
            self.recall(item)
            return
        part = self.part(item)
        given = self.receive(item) if self.receives(item) else None
        hidden = self.read(item, part, given)
        with torch.no_grad():
            if not self.place.closes:
                self.place.channels["out"].send(hidden)
                return
            tokens, trailing = self.model.leave(part, hidden, self.m)
        if item.kind == Kind.SUMMARY:
            keys = self.keys(item)
            self.queries.update(zip(keys, trailing.chunk(len(keys)), strict=True))
            return
        if self.m:
            self.borders[item.micro_batch].write(item.segment, trailing)
        if not self.inputs.wanted:
            assert isinstance(part, Segment)
            with torch.no_grad():
                self.losses[item.segment, item.micro_batch] = self.model.score(part, tokens, with_loss=True)[0]

    def read(self, item: Item, part: Segment | Summary, given: Tensor | None) -> Tensor:
        """Through this stage's layers; what the backward pass wants is kept."""
        if item in self.keeps:
            self.readings[item] = self.with_graph(part, item, given)
            return self.readings[item].hidden
        if self.draws:
            self.random[item] = RandomState(self.device)
        if self.inputs.wanted:
            self.inputs.put(item, given)
        with torch.no_grad():
            return self.through(part, item, given)

    def with_graph(self, part: Segment | Summary, item: Item, given: Tensor | None) -> Reading:
        """Through this stage's layers, with a graph that begins at what the stage was given."""
        if given is not None:
            given.requires_grad_()
        return Reading(given, self.through(part, item, given))

    def read_again(self, item: Item, part: Segment | Summary) -> Reading:
        """As an item was read before, with a graph. Whatever is read next draws random numbers of its own."""
        before = self.random.pop(item, None)
        if before is None:
            return self.with_graph(part, item, self.inputs.take(item))
        now = RandomState(self.device)
        before.restore()
        reading = self.with_graph(part, item, self.inputs.take(item))
        now.restore()
        return reading

    def through_layers(self, part: Segment | Summary, item: Item, given: Tensor | None) -> Tensor:
        """Through this stage's layers, ``[b, t, h]``. The first stage makes the embeddings."""
        if self.place.opens:
            given = self.model.enter(part, self.prompt(item, part, given))
        assert given is not None
        return self.model.decode(part, given).to(self.dtype)

    def prompt(self, item: Item, part: Segment | Summary, recalled: Tensor | None) -> Tensor:
        """What stands around the tokens, ``[b, m, d]``."""
        rows = len(part.tokens)
        if item.kind == Kind.SUMMARY:
            return self.model.summary_prompt(rows)
        if recalled is None:
            return torch.zeros(rows, 0, self.model.backbone.dim, dtype=self.dtype, device=self.device)
        valid = self.borders[item.micro_batch].before(item.segment)[1]
        return self.model.prompt_of(recalled, remembers(valid, self.mode))

    def recall(self, item: Item) -> None:
        """P_n on the last stage, which goes to the first."""
        key = (item.segment, item.micro_batch)
        memories, valid = self.borders[item.micro_batch].before(item.segment)
        with torch.no_grad():
            recalled, self.shares[key] = self.model.recalled(self.queries.get(key), memories, valid, self.mode)
        if not self.inputs.wanted:
            self.queries.pop(key, None)
        self.place.channels["out"].send(recalled)

    def backward(self, item: Item) -> None:
        """An item's backward pass, behind one more forward pass if its graph was not kept; the gradient of its input
        goes back."""
        if item.kind == Kind.RECALL:
            self.recall_backward(item)
            return
        part, read = self.part(item), Item(item.kind, item.segment, item.micro_batch)
        given, hidden = self.readings.pop(read) if read in self.readings else self.read_again(read, part)
        if self.place.closes:
            self.loss(item, part, hidden).backward()
        else:
            hidden.backward(self.receive(item))
        if given is not None:
            assert given.grad is not None
            self.place.channels["back_out"].send(given.grad)

    def loss(self, item: Item, part: Segment | Summary, hidden: Tensor) -> Tensor:
        """The scalar that the last stage goes backward from, with what later segments have sent put in."""
        tokens, trailing = self.model.leave(part, hidden, self.m)
        if isinstance(part, Summary):
            gradient = torch.cat([self.query_gradients.pop(key) for key in self.keys(item)])
            return (trailing.to(gradient.dtype) * gradient).sum()
        losses, _ = self.model.score(part, tokens, with_loss=True, backward_follows=True)
        self.losses[item.segment, item.micro_batch] = losses.detach()
        return weighted(losses, self.weight) + (
            self.borders[item.micro_batch].pull(item.segment, trailing) if self.m else 0
        )

    def recall_backward(self, item: Item) -> None:
        """The prompt's gradient comes from the first stage, and goes to the query and the memories."""
        key = (item.segment, item.micro_batch)
        borders = self.borders[item.micro_batch]
        memories, valid = borders.before(item.segment)
        memories.requires_grad_()
        query = self.queries.pop(key).requires_grad_() if self.mode == "hmt" else None
        recalled, _ = self.model.recalled(query, memories, valid, self.mode)
        recalled.backward(self.receive(item))
        borders.push(item.segment, memories.grad, 1.0)
        if query is not None:
            assert query.grad is not None
            self.query_gradients[key] = query.grad.to(torch.promote_types(query.dtype, torch.float32))

    def states(self) -> Iterator[MemoryState]:
        """What is behind the window, of each micro-batch; the memories are right on the last stage alone."""
        for borders, window in zip(self.borders, self.parts, strict=True):
            yield borders.state(window, window.tail(len(window) - 1, self.settings.sensory_tokens))
