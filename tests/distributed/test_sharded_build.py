"""At ZeRO-3 a model is sharded from the start: no rank ever holds all of it."""

import pytest
import torch
from ranks import run_ranks
from transformers import AutoConfig, AutoModelForCausalLM

CONFIG = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_each_rank_has_its_share_alone(tmp_path, precision):
    torch.manual_seed(3)
    values = {key: value for key, value in CONFIG.items() if key != "model_type"}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **values)).save_pretrained(tmp_path)
    rows = run_ranks("sharded_build.py", {"folder": str(tmp_path), "config": CONFIG, "precision": precision})
    assert rows["folder"]["same_memory"]
    for name, row in rows.items():
        assert row["held"] == 0, name  # nothing but shares
        assert row["largest_share"] <= 1.1, name  # of equal size, up to padding
        assert row["dtypes"] == [{"fp32": "torch.float32", "bf16": "torch.bfloat16"}[precision]], name
        assert row["equal"], name
        assert all(0.01 < spread < 0.03 for spread in row["spread"].values()), (name, row["spread"])  # 0.02 is meant
