"""Tests of a GPU share one process: what one of them changes there ends with it."""

import gc
import os
import sys
from collections.abc import Iterator
from unittest.mock import patch

import pytest
import torch

from hmt_ds.backbones import CausalLM
from hmt_ds.backbones.compute import use_liger
from hmt_ds.parallel import compute_choice


@pytest.fixture(autouse=True)
def process_state() -> Iterator[None]:
    """Restore variables and flags, and free compilers' caches and GPU memory, after every test."""
    tf32, limit = torch.backends.cuda.matmul.allow_tf32, torch._dynamo.config.recompile_limit
    with patch.dict(os.environ):  # what join() sets would reach the ranks that the next test starts
        yield
    torch.backends.cuda.matmul.allow_tf32, torch._dynamo.config.recompile_limit = tf32, limit
    if torch.cuda.is_initialized():
        # a capture that fails leaves its stream as the current one
        torch.cuda.set_stream(torch.cuda.default_stream())
    torch._dynamo.reset()
    gc.collect()  # engines and CUDA graphs are in cycles; freeing a graph in the middle of another's capture breaks it
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@pytest.fixture(autouse=True)
def liger_for_one_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put transformers' own functions back where liger has replaced them.

    It changes the module in which a family is defined: every model that the process makes later would compute by
    liger's kernels, those of ``kernels: plain`` and ``compile`` too.
    """

    def use_and_restore(backbone: CausalLM) -> None:
        module = sys.modules[type(backbone.model).__module__]
        for name, value in list(vars(module).items()):
            monkeypatch.setattr(module, name, value)
        use_liger(backbone)

    monkeypatch.setattr(compute_choice, "use_liger", use_and_restore)
