"""The forward and backward passes of one pipeline stage over a window of segments, in the order of a pipeline schedule.

- :meth:`StagePass.forward` and :meth:`StagePass.recall`: receive, compute, send to the next stage; the last stage sends
to the first.
- :meth:`StagePass.backward` and :meth:`StagePass.recall_backward`: recompute, receive a gradient, backpropagate, send a
gradient to the previous stage; the first stage sends to the last.
"""

import torch
from torch import Tensor

from hmt_ds.memory import Segment, Summary
from hmt_ds.memory.loss import weighted
from hmt_ds.parallel.pipeline.p2p import Channel, TensorSpec
from hmt_ds.parallel.pipeline.schedule import Action, Kind, forward_of
from hmt_ds.parallel.pipeline.stage_layers import StageLayers
from hmt_ds.parallel.pipeline.stage_window import Stage, StageWindow

FORWARD_PHASES = {Kind.SUMMARY: "summary", Kind.RECALL: "recall", Kind.SEGMENT: "forward"}


class StagePass(StageLayers):
    """Runs the forward and backward passes of one pipeline stage over a window of segments, exchanging activations and
    gradients with the neighbouring stages."""

    def __init__(self, stage: Stage, window: StageWindow):
        super().__init__(stage, window)
        self.channels, self.phase = stage.topology.channels, window.phase
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

    # after the window
