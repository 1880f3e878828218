"""Ways to read a document before a question: with its memories, another document's, none, or by the backbone alone."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from transformers import GenerationConfig

from hmt_ds.backbones.families import family_of
from hmt_ds.conversion.conversion_error import ConversionError
from hmt_ds.generation.generate import pad_of
from hmt_ds.generation.model import Asked
from hmt_ds.generation.reading import encode, pad_left
from hmt_ds.inference.segment_cache import SegmentCache
from hmt_ds.memory.state import MemoryState
from hmt_ds.tasks.options import ReadingName

Change = Callable[[MemoryState], MemoryState]
CHANGES: dict[ReadingName, Change] = {
    "memory": lambda state: state,
    "swapped": lambda state: replace(state, memories=state.memories.roll(1, 0), valid=state.valid.roll(1, 0)),
    "empty": lambda state: replace(state, valid=torch.zeros_like(state.valid)),
}


class Asks(Protocol):
    """Protocol of a document and a question about it.

    Attributes:
        text: the document.
        question: text that follows the document, and that the model continues with its answer.
    """

    @property
    def text(self) -> str: ...

    @property
    def question(self) -> str: ...


class Readings:
    """Answers questions about documents after reading each document in several ways, such as with memories or without.

    Args:
        asked: the model and its tokenizer.
        names: the ways: ``memory`` (the document's own memories), ``swapped`` (those of another document of the batch),
            ``empty`` (none), ``truncated`` (the backbone alone, with the last tokens that fit into a segment) or
            ``full`` (the backbone alone, with all tokens).
        new: largest number of tokens of an answer.
    """

    def __init__(self, asked: Asked, names: Sequence[ReadingName], new: int):
        self.asked, self.names, self.new = asked, names, new
        own = asked.model.generation_config
        self.pad = pad_of(own)
        self.settings = GenerationConfig(
            max_new_tokens=new, do_sample=False, pad_token_id=self.pad, eos_token_id=own.eos_token_id
        )

    def check(self, length: int) -> None:
        """Check that the backbone alone can read a document, if one of the ways of reading is ``full``.

        Args:
            length: tokens of the document.

        Raises:
            ConversionError: document and answer have more tokens than the backbone has positions.
        """
        config = self.asked.model.backbone_model.config
        if "full" in self.names and family_of(config).hard_positions:
            most = config.max_position_embeddings
            if length + self.new > most:
                raise ConversionError(
                    f"--readings full: {length} + {self.new} tokens exceed the backbone's {most} "
                    "positions: shorten --lengths or leave full out"
                )

    @torch.no_grad()
    def answers(self, tasks: Sequence[Asks]) -> dict[ReadingName, list[str]]:
        """Return the model's answers for each way of reading: one text per document, in the order of the documents.

        Args:
            tasks: documents with questions, read as one batch.
        """
        documents = [encode(self.asked.tokenizer, task.text, begins=True) for task in tasks]
        questions = [encode(self.asked.tokenizer, task.question, begins=False) for task in tasks]
        found: dict[ReadingName, list[str]] = {}
        with_memory = [name for name in self.names if name in CHANGES]
        if with_memory:
            cache = self.read(documents)
            found |= {name: self.ask(cache, CHANGES[name], questions) for name in with_memory}
        for name in self.names:
            if name not in CHANGES:
                found[name] = self.by_backbone(documents, questions, whole=name == "full")
        return {name: found[name] for name in self.names}

    def read(self, documents: Sequence[Sequence[int]]) -> SegmentCache:
        """Read documents into a new cache of memories and keys, one row per document.

        Args:
            documents: token ids of each document.
        """
        cache = SegmentCache()
        ids, mask = pad_left(documents, self.pad, self.asked.model.device)
        self.asked.model(ids, attention_mask=mask, past_key_values=cache, logits_to_keep=1)
        cache.seen = 0
        return cache

    def ask(self, cache: SegmentCache, change: Change, questions: Sequence[Sequence[int]]) -> list[str]:
        """Answer questions after the cached documents, with the documents' memories replaced by others.

        Args:
            cache: cache that has read the documents, one row each; copied, not changed.
            change: maps the memory state of all rows to the one to answer with.
            questions: token ids of each row's question.

        Returns:
            The generated answer of each row.
        """
        cache = copy.deepcopy(cache)
        assert cache.rows is not None
        cache.rows = replace(cache.rows, state=change(cache.rows.state))
        cache.undo.clear()
        cache.drop_keys()
        ids, mask = pad_left(questions, self.pad, self.asked.model.device)
        new = self.asked.model.generate(
            ids, attention_mask=mask, past_key_values=cache, generation_config=self.settings
        )
        return self.texts(new[:, ids.shape[1] :])

    def by_backbone(
        self, documents: Sequence[Sequence[int]], questions: Sequence[Sequence[int]], *, whole: bool
    ) -> list[str]:
        """Answer questions with the backbone alone, without memory.

        Args:
            documents: token ids of each document.
            questions: token ids of each document's question.
            whole: whether to read all tokens; otherwise only the last ones, as many as fit into a segment.

        Returns:
            The generated answer of each document.
        """
        settings = self.asked.model.hmt.settings
        window = settings.sensory_tokens + settings.segment_length
        rows = [[*document, *question] for document, question in zip(documents, questions, strict=True)]
        if not whole:
            rows = [row[-window:] for row in rows]
        ids, mask = pad_left(rows, self.pad, self.asked.model.device)
        new = self.asked.model.backbone_model.generate(ids, attention_mask=mask, generation_config=self.settings)
        return self.texts(new[:, ids.shape[1] :])

    def texts(self, new: torch.Tensor) -> list[str]:
        """Decode generated tokens into one text per row, without special tokens.

        Args:
            new: token ids ``[batch, tokens]``.
        """
        return [text.strip() for text in self.asked.tokenizer.batch_decode(new, skip_special_tokens=True)]
