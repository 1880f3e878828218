"""A tiny model and documents for comparing several ranks with one process."""

from dataclasses import replace

import deepspeed
import numpy as np
import torch
from datasets import Dataset, Features, List, Value
from torch import Tensor, nn

from hmt_ds.backbones import build_model, select_trainable
from hmt_ds.data import Packing, WindowLoader
from hmt_ds.memory import HMT, IGNORED, MemorySettings, Window

L = 8
ROWS = 4  # of the global batch
DEPTH = 4  # segments of a window
STEPS = 3
VOCABULARY = 64
# Documents of 1 to 7 segments; most end within a window and in a short segment, and the document of one token has no
# label. In the last window two rows, all of the second rank's, are empty.
LENGTHS = [7 * L - 3, 3, L, 7 * L, 5, 2 * L + 1, 1, 8 * L - 2, 3 * L + 7, 2 * L + 1, L - 1]

# With the usual initial range (0.02) recall weighs all memories equally, and the summary's gradient disappears in
# float32 rounding. A much wider range makes the recurrence chaotic, which amplifies rounding beyond 1e-5.
BACKBONE = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.06,
    "tie_word_embeddings": True,
}
# fewer memories than segments
MEMORY = MemorySettings(segment_length=L, recall_dim=24, sensory_tokens=3, memory_tokens=2, cached_memories=3)
# one more, so that two of the older ones are a choice
ADAPTED = replace(MEMORY, interface="adapted", cached_memories=4, last_memories=2)


def tokenised() -> Dataset:
    """Documents of LENGTHS tokens, as `tokenize_documents` returns them."""
    random = np.random.default_rng(0)
    ids = [random.integers(0, VOCABULARY, length) for length in LENGTHS]
    features = Features({"input_ids": List(Value("int32")), "length": Value("int64")})
    return Dataset.from_dict({"input_ids": ids, "length": LENGTHS}, features=features)


def windows(rank: int, ranks: int, segments: int = DEPTH, rows: int = ROWS, loss: str = "all") -> list[Window]:
    """A rank's rows of all windows of one epoch, with targets of all kinds: none, the last memory, older ones.

    Args:
        loss: "all": every label counts; "answers": some do; "weighted": labels have weights; "packed": documents share
            segments, with gaps for MEMORY.
    """
    batches = WindowLoader(
        tokenised(),
        segments=segments,
        segment_length=L,
        seed=0,
        shuffle=False,
        epochs=1,
        rank=rank,
        world_size=ranks,
        batch_size=rows // ranks,
        packing=Packing(2, 3) if loss == "packed" else None,
    )
    every = [
        Window(b.input_ids, b.labels, b.lengths, b.starts, targets=b.input_ids[:, :, 0] // 11, parts=b.parts)
        for b in batches
    ]
    if loss in ("all", "packed"):
        return every
    mine = slice(rank * rows // ranks, (rank + 1) * rows // ranks)
    weights = draw_weights(rows, segments, len(every))
    return [counting(window, drawn[mine], loss) for window, drawn in zip(every, weights, strict=True)]


def draw_weights(rows: int, segments: int, number: int) -> list[Tensor]:
    """Weights of all rows' labels by window; in the second window, half of the rows or all have no label."""
    random = torch.Generator().manual_seed(5)
    every = [torch.randint(0, 4, (rows, segments, L), generator=random) / 4 for _ in range(number)]
    every[1][rows // 2 if segments == DEPTH else 0 :] = 0
    return every


def counting(window: Window, weights: Tensor, loss: str) -> Window:
    """The same window with labels that count as much as their weights, or if those are above 1/2."""
    weights = weights * (window.labels >= 0)
    if loss == "answers":
        return replace(window, labels=window.labels.where(weights > 0.5, IGNORED))
    return replace(window, labels=window.labels.where(weights > 0, IGNORED), weights=weights)


def plain_model(
    train: str = "whole", dtype: torch.dtype = torch.float32, layers: int = 2, memory: MemorySettings = MEMORY
) -> HMT:
    """The model in one process, without DeepSpeed."""
    backbone = build_model(BACKBONE | {"num_hidden_layers": layers}, dtype=dtype, seed=1)
    torch.manual_seed(2)
    # (with some seeds a gradient vanishes, and one process in float32 differs by 1e-5 from float64)
    select_trainable(backbone, train, seed=6)
    model = HMT(backbone, memory)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)  # zero by default, and then lora_A has no gradient
        elif name.startswith("memory_embedding."):
            nn.init.normal_(parameter)  # one and zero by default, which could be swapped or left out unseen
        if not name.startswith("backbone."):
            parameter.data = parameter.data.to(dtype)
    return model


def set_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy full weights into a model, which may be sharded."""
    for name, parameter in model.named_parameters():
        with torch.no_grad(), deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.copy_(weights[name])


def get_weights(model: nn.Module) -> dict[str, Tensor]:
    """Full weights of a model, which may be sharded, on the CPU."""
    found = {}
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            found[name] = parameter.detach().to("cpu", copy=True)
    return found
