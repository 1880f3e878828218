"""On a GPU: models that are read from a folder train with the default settings. Run by hand: pytest -m gpu tests/gpu.

Random weights made on the device would not do: only a folder's buffers begin on the host.
"""

from collections.abc import Callable
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from train_folder import STEPS, Case, save_converted, save_model, train

from hmt_ds.backbones import FAMILIES
from hmt_ds.distributed.process_group import join

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
SIZES = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.06,
    "pad_token_id": 0,
}
OPT = SIZES | {"ffn_dim": 128, "max_position_embeddings": 64, "initializer_range": 0.12}
GEMMA = SIZES | {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16}
KINDS: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "llama, tied": SIZES | {"tie_word_embeddings": True},
    "mistral": SIZES | {"sliding_window": 8},
    "qwen2": SIZES,
    "qwen3": SIZES | {"head_dim": 16},
    "gemma2": GEMMA,
    "gemma3_text": GEMMA,
    "phi3": SIZES,
    "smollm3": SIZES | {"no_rope_layers": [1, 0]},
    "opt": OPT,
    "opt, projected": OPT | {"word_embed_proj_dim": 32, "do_layer_norm_before": False},
    "gpt2": {"vocab_size": 128, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.06},
    "gpt_neox": SIZES,
    # of no row in the table
    "granite": SIZES,
    "stablelm": SIZES,
    "falcon": SIZES,
}
DRAW = ("opt", "gpt2")  # dropout by default, and so no CUDA graphs
TRAINED = ("whole", "lora", "frozen")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """The folder of a kind of model, plain or converted, written when it is first asked for."""
    root = tmp_path_factory.mktemp("models")

    def written(kind: str, converted: bool = False) -> str:
        path: Path = root / f"{kind.replace(', ', '-')}{'-converted' * converted}"
        if not path.exists():
            config = KINDS[kind] | {"model_type": kind.split(",")[0]}
            (save_converted if converted else save_model)(config, path)
        return str(path)

    return written


def check(losses: list[float]) -> None:
    """Check that losses are finite and fall, by more than dropout makes them vary."""
    print([round(loss, 3) for loss in losses])
    assert len(losses) == STEPS and all(map(isfinite, losses))
    assert sum(losses[-3:]) < sum(losses[:3]) - 0.05, losses


def check_here(case: Case, graphs: bool) -> None:
    """In this process alone."""
    found = train(case, join())
    check(found["losses"])
    assert found["graphs"] == graphs


def test_every_family_is_trained():
    assert {kind.split(",")[0] for kind in KINDS} >= FAMILIES.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_whole_at_stage_1(folder, kind):
    check_here(Case(folder(kind)), graphs=not kind.startswith(DRAW))


@pytest.mark.parametrize("kind", ["llama", "opt"])
@pytest.mark.parametrize("trained", ["lora", "frozen", "converted"])
def test_other_trainings_at_stage_1(folder, kind, trained):
    case = Case(folder(kind, trained == "converted"), trained if trained in TRAINED else "whole")
    check_here(case, graphs=kind not in DRAW)


@pytest.mark.parametrize(
    ("kind", "trained"),
    [(kind, trained) for kind in ("llama", "opt") for trained in (*TRAINED, "converted")] + [("gemma2", "whole")],
)
def test_stage_3(folder, kind, trained):
    case = Case(folder(kind, trained == "converted"), trained if trained in TRAINED else "whole", "zero3")
    check_here(case, graphs=False)


def test_pipeline(folder):
    """All cases in one start of two ranks, which share the GPU."""
    cases = [Case(folder(kind), trained, stages=2) for kind in ("llama", "opt") for trained in TRAINED]
    cases += [Case(folder(kind, converted=True), stages=2) for kind in ("llama", "opt")]
    cases += [Case(folder("llama, tied"), stages=2)]
    rows = run_ranks("train_folder.py", [asdict(case) for case in cases], timeout=550, one_gpu=True)
    for case, row in zip(cases, rows, strict=True):
        print(case, end=" ")
        check(row["losses"])
