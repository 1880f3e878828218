"""A run with frozen weights in 4 bits: resumed bit for bit, on two ranks that agree. Needs bitsandbytes."""

from importlib.util import find_spec

import pytest
import yaml
from tiny_recipe import STEPS, VOCABULARY, make_materials, train, write_recipe

from hmt_ds.reporting.metrics import read_metrics

LLAMA = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.mark.skipif(not find_spec("bitsandbytes"), reason="pip install bitsandbytes")
@pytest.mark.parametrize("stage", [0, 2])
def test_resumed_bit_for_bit(tmp_path, stage):
    make_materials(tmp_path)
    recipe = write_recipe(tmp_path, stage)
    values = yaml.safe_load(recipe.read_text())
    values["model"] |= {"source": LLAMA, "train": "lora", "lora": {"rank": 4, "dropout": 0.1, "quantize": "nf4"}}
    recipe.write_text(yaml.safe_dump(values))
    losses = []
    for parts in ([STEPS], [STEPS // 2, STEPS]):
        output = tmp_path / f"in_{len(parts)}"
        for steps in parts:  # the schedule is that of the whole run
            stop = (
                "--training.steps",
                str(steps),
                "--schedule.params",
                f"{{warmup_num_steps: 3, total_num_steps: {STEPS}}}",
            )
            code, printed = train(recipe, output, *stop, "--checkpoint.resume", "auto")
            assert code == 0, printed
        losses.append([(row["loss"], row["gradient_norm"]) for row in read_metrics(output / "metrics.jsonl")])
    assert len(losses[0]) == STEPS and losses[0] == losses[1]
    code, printed = train(recipe, output, "--model.lora.quantize", "none", "--checkpoint.resume", "auto")
    assert code == 2 and "model.lora.quantize is 'nf4' in " in printed, printed
