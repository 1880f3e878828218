"""The forward and backward passes of one pipeline stage over a window of segments, in the order of a pipeline schedule.

- :meth:`StagePass.forward` and :meth:`StagePass.recall`: receive, compute, send to the next stage; the last stage sends
to the first.
- :meth:`StagePass.backward` and :meth:`StagePass.recall_backward`: recompute, receive a gradient, backpropagate, send a
gradient to the previous stage; the first stage sends to the last.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from hmt_ds.memory import Boundaries, MemoryState, RandomState, Segment, Summary
from hmt_ds.memory.loss import weighted
from hmt_ds.parallel.pipeline.p2p import Channel, TensorSpec
from hmt_ds.parallel.pipeline.schedule import Action, Kind, forward_of
from hmt_ds.parallel.pipeline.stage_window import Stage, StageGraph, StageWindow

FORWARD_PHASES = {Kind.SUMMARY: "summary", Kind.RECALL: "recall", Kind.SEGMENT: "forward"}


class StagePass:
    """Runs the forward and backward passes of one pipeline stage over a window of segments, exchanging activations and
    gradients with the neighbouring stages."""

    def __init__(self, stage: Stage, window: StageWindow):
        self.stage, self.window, self.micro_batches = stage, window, window.micro_batches
        self.model, self.settings, self.mode = stage.model, stage.model.settings, window.mode
        self.topology, self.channels = stage.topology, stage.topology.channels
        self.device, self.phase = window.micro_batches[0].input_ids.device, window.phase
        self.layers = window.measure(self.run_layers)
        # the last stage holds the memories; the first only needs to know which rows have any to recall
        self.boundaries = [
            Boundaries(state, micro_batch, self.settings.kept_memories)
            for state, micro_batch in zip(window.states, self.micro_batches, strict=True)
        ]
        self.graphs: dict[Action, StageGraph] = {}
        self.random_states: dict[Action, RandomState] = {}
        # by segment and micro-batch, on the last stage
        self.queries: dict[tuple[int, int], Tensor] = {}
        self.query_gradients: dict[tuple[int, int], Tensor] = {}
        self.losses: dict[tuple[int, int], Tensor] = {}
        self.recall_weights: dict[tuple[int, int], Tensor] = {}
        self.recall_losses: dict[tuple[int, int], Tensor] = {}

    def run(self, order: list[Action]) -> None:
        """Run all forward and backward passes of a window of segments, and wait until all sends have completed.

        Args:
            order: the stage's passes, in order.
        """
        # gloo moves nothing before the receive is posted: post all, in the order in which the neighbour sends
        for action in order if self.topology.posts_receives_early else []:
            if self.expects_message(action):
                self.channel_in(action).post_receive(self.message_spec(action))
        for action in order:
            with self.phase("backward" if action.backward else FORWARD_PHASES[action.kind]):
                (self.backward if action.backward else self.forward)(action)
        # channels hold the tensors they send: wait, so that none of them outlives the window
        with self.phase("wait"):
            for channel in self.channels:
                channel.flush()

    # messages

    def expects_message(self, action: Action) -> bool:
        """Return whether a forward or backward pass needs a message from another pipeline stage.

        Args:
            action: the pass.
        """
        if action.kind == Kind.RECALL:
            return action.backward  # the gradient of the prompt, from the first stage
        if action.backward:
            return not self.topology.is_last
        # the first stage embeds the tokens itself; for segments it waits for the prompt from the last stage
        return not self.topology.is_first or (action.kind == Kind.SEGMENT and self.mode != "backbone")

    def channel_in(self, action: Action) -> Channel:
        """Return the channel through which a forward pass receives its input, or a backward pass its gradient.

        Args:
            action: the pass.
        """
        return self.channels.backward_in if action.backward else self.channels.forward_in

    def message_spec(self, action: Action) -> TensorSpec:
        """Return the shape and dtype of the message that a forward or backward pass receives from another pipeline
        stage.

        Args:
            action: the pass.
        """
        rows, settings = self.window.rows_of(action), self.settings
        if action.kind == Kind.RECALL or (self.topology.is_first and not action.backward):
            prompt = settings.prompt_tokens(self.mode)  # what was recalled, or its gradient
            return TensorSpec((rows, prompt, self.model.backbone.dim), self.stage.dtype)
        if action.kind == Kind.SUMMARY:
            positions = settings.summary_positions
        else:
            around = settings.sink_tokens + settings.prompt_tokens(self.mode) + settings.write_tokens(self.mode)
            positions = around + settings.sensory_tokens + settings.segment_length
        return TensorSpec((rows, positions, self.stage.hidden_size), self.stage.dtype)

    def receive(self, action: Action) -> Tensor:
        """Receive from another pipeline stage the input of a forward pass, or the output's gradient for a backward
        pass.

        Args:
            action: the pass.

        Returns:
            Activations ``[rows, positions, hidden size]`` or a prompt ``[rows, prompt_tokens, dim]``.
        """
        with self.phase("wait"):
            return self.channel_in(action).receive(self.message_spec(action))

    # forward passes

    def forward(self, action: Action) -> None:
        """Run one forward pass of this pipeline stage, and send its output to the next stage.

        Args:
            action: the pass.
        """
        if action.kind == Kind.RECALL:
            self.recall(action)
            return
        tokens = self.window.tokens_of(action, self.settings)
        # RECEIVE from the previous stage: the segment's hidden states. On the first stage from the last one: what
        # it recalls, [rows, prompt_tokens, dim], the only thing that segment n needs from segment n - 1.
        stage_input = self.receive(action) if self.expects_message(action) else None
        hidden = self.forward_layers(action, tokens, stage_input)
        if self.topology.is_last:
            self.end_forward(action, tokens, hidden)
        else:
            # SEND to the next stage: the segment's hidden states, from which its layers continue.
            self.channels.forward_out.send(hidden)

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

    @torch.no_grad()
    def end_forward(self, action: Action, tokens: Segment | Summary, hidden: Tensor) -> None:
        """On the last stage, compute from the layers' output the retrieval queries of a summary, or a segment's memory
        and loss.

        Args:
            action: the forward pass.
            tokens: what the pass ran on: a segment, or a summary (the tokens of its retrieval query).
            hidden: output of the layers, ``[rows, positions, hidden size]``.
        """
        token_states, prompt_states = self.model.leave(tokens, hidden, self.mode)
        if isinstance(tokens, Summary):
            keys = self.window.query_keys(action)
            self.queries.update(zip(keys, prompt_states.chunk(len(keys)), strict=True))
            return
        if self.mode != "backbone":
            self.boundaries[action.micro_batch].write(action.segment, prompt_states)
        # in training the backward pass computes the loss: logits are made once
        if not self.window.backward_follows:
            loss, _ = self.model.score(tokens, token_states, with_loss=True, by_token=True)
            self.losses[action.segment, action.micro_batch] = loss

    def recall(self, action: Action) -> None:
        """Retrieve a prompt for a segment from earlier segments' memories, on the last stage, and send it to the first
        stage.

        Args:
            action: the retrieval pass of the segment.
        """
        key = (action.segment, action.micro_batch)
        memories, valid = self.boundaries[action.micro_batch].before(action.segment)
        with torch.no_grad():
            recalled = self.model.recalled(self.queries.get(key), memories, valid, self.mode)
        self.recall_weights[key] = recalled.share
        if not self.window.backward_follows:
            self.queries.pop(key, None)
        # SEND from the last stage to the first: what was recalled, with which segment n begins there. Other memories
        # and all queries stay on the last stage.
        self.channels.forward_out.send(recalled.memory)

    # backward passes

    def backward(self, action: Action) -> None:
        """Run one backward pass of this pipeline stage, and send the gradient of the stage's input to the previous
        stage.

        Backward passes run in the reverse order of the forward passes: segments from last to first, each micro-batch's
        memory retrieval between them, and the pass for a segment's retrieval query once the query has a gradient.

        Args:
            action: the pass.
        """
        if action.kind == Kind.RECALL:
            self.recall_backward(action)
            return
        tokens, forward = self.window.tokens_of(action, self.settings), forward_of(action)
        # A few graphs were kept, where memory allows; of all other passes only the stage input was, and the layers run
        # once more. They do so before the gradient is received: this overlaps with the next stage's backward pass.
        graph = self.graphs.pop(forward) if forward in self.graphs else self.recompute(forward, tokens)
        if self.topology.is_last:
            self.backward_scalar(action, tokens, graph.hidden).backward()
        else:
            # RECEIVE from the next stage: the gradient of the hidden states that it was sent.
            graph.hidden.backward(self.receive(action))
        if graph.stage_input is not None:
            assert graph.stage_input.grad is not None
            # SEND to the previous stage: the gradient of the hidden states that it sent. From the first stage to the
            # last: the gradient of the prompt P_n, which continues through the recall there.
            self.channels.backward_out.send(graph.stage_input.grad)

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

    def backward_scalar(self, action: Action, tokens: Segment | Summary, hidden: Tensor) -> Tensor:
        """Return the scalar that the last pipeline stage backpropagates: the loss, and what later segments send back.

        A gradient g that other passes computed for a tensor x enters as the scalar <x, g>, whose gradient is g.

        Args:
            action: the backward pass.
            tokens: what the pass runs on: a segment, or a summary (the tokens of its retrieval query).
            hidden: output of the layers, ``[rows, positions, hidden size]``, with graph.
        """
        token_states, prompt_states = self.model.leave(tokens, hidden, self.mode)
        if isinstance(tokens, Summary):
            # the gradients of the queries, which the recalls of this segment left behind
            gradient = torch.cat([self.query_gradients.pop(key) for key in self.window.query_keys(action)])
            return (prompt_states.to(gradient.dtype) * gradient).sum()
        losses, _ = self.model.score(tokens, token_states, with_loss=True, backward_follows=True)
        self.losses[action.segment, action.micro_batch] = losses.detach()
        loss = weighted(losses, self.window.loss_weight)
        # the gradient of M_n, summed over the recalls of all later segments that saw it
        if self.mode == "backbone":
            return loss
        return loss + self.boundaries[action.micro_batch].pull(action.segment, prompt_states)

    def recall_backward(self, action: Action) -> None:
        """Backpropagate the gradient of a retrieved prompt to its query and to the memories it was computed from.

        Args:
            action: the backward pass of the segment's recall.
        """
        key = (action.segment, action.micro_batch)
        boundaries = self.boundaries[action.micro_batch]
        memories, valid = boundaries.before(action.segment)
        # The recall is recomputed from its inputs, which are leaves here: its graph does not reach into the passes that
        # computed them. Their gradients wait for those passes' own backward passes.
        memories.requires_grad_()
        query = self.queries.pop(key).requires_grad_() if self.settings.summarises else None
        targets = self.window.targets_of(action)
        recalled = self.model.recalled(query, memories, valid, self.mode, targets)
        self.recall_losses[key] = recalled.loss.detach()
        # RECEIVE from the first stage: the gradient of what was recalled, [rows, prompt_tokens, dim].
        injected = (recalled.memory * self.receive(action)).sum()
        (injected + weighted(recalled.loss, self.window.recall_weight)).backward()
        boundaries.push(action.segment, memories.grad, 1.0)
        if query is not None:
            assert query.grad is not None
            self.query_gradients[key] = query.grad.to(torch.promote_types(query.dtype, torch.float32))

    # running the layers

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

    # after the window

    def final_states(self) -> Iterator[MemoryState]:
        """Yield each micro-batch's memory state after the last segment; only the last stage's states have valid
        memories."""
        for boundaries, micro_batch in zip(self.boundaries, self.micro_batches, strict=True):
            tail = micro_batch.tail(len(micro_batch) - 1, self.settings.sensory_tokens)
            yield boundaries.state(micro_batch, tail)
