"""Rows of documents as tokens, and which of them are answers: helpers of tests."""

from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from hmt_ds.data.formats import Format

SYSTEM = {"role": "system", "content": "Be brief."}
CHAT = [
    {"role": "user", "content": "Where is the heavy jar?"},
    {"role": "assistant", "content": "It is in Denver. \N{SLIGHTLY SMILING FACE}"},
    {"role": "user", "content": "Is it? "},
    {"role": "assistant", "content": "Yes, it is."},
]


def encode(
    format: Format, tokenizer: PreTrainedTokenizerFast, eos: int | None = None, **row: Any
) -> tuple[list[int], list[bool]]:
    """The token ids of one row, and which of them are answers."""
    ids, weights = format.encode({name: [value] for name, value in row.items()}, 0, tokenizer, eos)
    assert weights is not None and weights[0].dtype == np.float32 and len(weights[0]) == len(ids[0])
    assert set(weights[0].tolist()) <= {1, format.prompt_weight}
    return ids[0].tolist(), (weights[0] == 1).tolist()


def answers_of(tokenizer: PreTrainedTokenizerFast, ids: list[int], answers: list[bool]) -> list[str]:
    """The text of each run of answer tokens."""
    runs: list[list[int]] = []
    for n, (token, answer) in enumerate(zip(ids, answers, strict=True)):
        if answer and not (n and answers[n - 1]):
            runs.append([])
        if answer:
            runs[-1].append(token)
    return [tokenizer.decode(run) for run in runs]
