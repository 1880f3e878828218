"""Run the layers of one pipeline stage for a pass, keep their autograd graph or their input, and recompute them."""

from collections.abc import Iterator

import torch
from torch import Tensor

from hmt_ds.memory import Boundaries, MemoryState, RandomState, Segment, Summary
from hmt_ds.parallel.pipeline.schedule import Action, Kind
from hmt_ds.parallel.pipeline.stage_window import Stage, StageGraph, StageWindow


class StageLayers:
    """Runs one pipeline stage's layers on the segments of a window; the messages between stages are in `StagePass`.

    Args:
        stage: this rank's part of the model.
        window: the window split into micro-batches, with the settings of the passes.
    """

    def __init__(self, stage: Stage, window: StageWindow):
        self.stage, self.window, self.micro_batches = stage, window, window.micro_batches
        self.model, self.settings, self.mode = stage.model, stage.model.settings, window.mode
        self.topology, self.device = stage.topology, window.micro_batches[0].input_ids.device
        self.layers = window.measure(self.run_layers)
        # the last stage holds the memories; the first only needs to know which rows have any to recall
        self.boundaries = [
            Boundaries(state, micro_batch, self.settings.kept_memories)
            for state, micro_batch in zip(window.states, self.micro_batches, strict=True)
        ]
        self.graphs: dict[Action, StageGraph] = {}
        self.random_states: dict[Action, RandomState] = {}

    def forward_layers(self, action: Action, tokens: Segment | Summary, stage_input: Tensor | None) -> Tensor:
        """Run the layers for a forward pass; keep their autograd graph, or only their input, to recompute from it
        later.

        Args:
            action: the forward pass.
            tokens: what the pass runs on: a segment, or a summary (the tokens of its retrieval query).
            stage_input: activations ``[rows, positions, hidden size]`` of the previous stage; None on the first stage
                without a prompt.

        Returns:
            Hidden states ``[rows, positions, hidden size]``.
        """
        if action in self.window.kept_graphs:
            self.graphs[action] = self.with_graph(tokens, action, stage_input)
            return self.graphs[action].hidden
        if self.window.backward_follows:
            if self.stage.uses_dropout:
                self.random_states[action] = RandomState(self.device)
            self.window.stash.put(action, stage_input)
        with torch.no_grad():
            return self.layers(tokens, action, stage_input)

    def recompute(self, action: Action, tokens: Segment | Summary) -> StageGraph:
        """Run a forward pass again from its stashed input, now with an autograd graph.

        Args:
            action: the backward pass that needs the graph.
            tokens: what the forward pass ran on: a segment, or a summary (the tokens of its retrieval query).

        Returns:
            The graph's two ends: the stage's input and output.
        """
        random_state = self.random_states.pop(action, None)
        if random_state is None:
            return self.with_graph(tokens, action, self.window.stash.take(action))
        # Replay the forward pass's random state for dropout, then return to the current one.
        current = RandomState(self.device)
        random_state.restore()
        graph = self.with_graph(tokens, action, self.window.stash.take(action))
        current.restore()
        return graph

    def with_graph(self, tokens: Segment | Summary, action: Action, stage_input: Tensor | None) -> StageGraph:
        """Run this stage's layers with an autograd graph that begins at a leaf copy of the stage's input.

        Args:
            tokens: what the layers run on: a segment, or a summary (the tokens of its retrieval query).
            action: the forward or backward pass.
            stage_input: ``[rows, positions, hidden size]``; None on the first stage without a prompt.
        """
        if stage_input is not None:
            stage_input.requires_grad_()
        return StageGraph(stage_input, self.layers(tokens, action, stage_input))

    def run_layers(self, tokens: Segment | Summary, action: Action, stage_input: Tensor | None) -> Tensor:
        """Run this pipeline stage's layers on their input; the first stage embeds the tokens before.

        Args:
            tokens: what the layers run on: a segment, or a summary (the tokens of its retrieval query).
            action: the forward or backward pass.
            stage_input: activations ``[rows, positions, hidden size]``, or on the first stage a prompt, or None.

        Returns:
            Hidden states ``[rows, positions, hidden size]``.
        """
        if self.topology.is_first:
            stage_input = self.model.enter(tokens, self.prompt(tokens, action, stage_input))
        assert stage_input is not None
        return self.model.decode(tokens, stage_input, self.mode).to(self.stage.dtype)

    def prompt(self, tokens: Segment | Summary, action: Action, recalled: Tensor | None) -> Tensor:
        """Return the prompt that is put around a segment's tokens, as embeddings ``[rows, prompt_tokens, dim]``.

        Only the first pipeline stage embeds tokens and prompts.

        Args:
            tokens: the segment, or a summary (the tokens of its retrieval query).
            action: the forward or backward pass.
            recalled: prompt received from the last stage, ``[rows, prompt_tokens, dim]``; None if nothing was
                retrieved.
        """
        rows = len(tokens.tokens)
        if action.kind == Kind.SUMMARY:
            return self.model.summary_prompt(rows)
        if recalled is None:
            return torch.zeros(rows, 0, self.model.backbone.dim, dtype=self.stage.dtype, device=self.device)
        valid = self.boundaries[action.micro_batch].before(action.segment)[1]
        return self.model.prompt_of(recalled, valid, self.mode)

    def final_states(self) -> Iterator[MemoryState]:
        """Yield each micro-batch's memory state after the last segment; only the last stage's states have valid
        memories."""
        for boundaries, micro_batch in zip(self.boundaries, self.micro_batches, strict=True):
            tail = micro_batch.tail(len(micro_batch) - 1, self.settings.sensory_tokens)
            yield boundaries.state(micro_batch, tail)
