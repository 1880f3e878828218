"""Every shipped recipe: its settings, the checks before a run on a tiny backbone of its family, and its memory."""

import json
import re
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from hmt_ds.backbones import read_config
from hmt_ds.config.load import load_recipe
from hmt_ds.config.recipe import Recipe
from hmt_ds.parallel.deepspeed_config.fill import stage_of
from hmt_ds.planning.activations import GIB, kept_bytes
from hmt_ds.planning.compare_job import BF16, REPLICATED, SHARDED
from hmt_ds.preflight import compute_checks
from hmt_ds.preflight.prepare import deepspeed_config, prepare

PROJECT = Path(__file__).parents[2]
FOLDER = PROJECT / "launch" / "recipes"
OWN_TESTS = {
    "quickstart",
    "novel",
    "retrieval-smollm2",
    "questions-smollm2",
    "babilong-smollm2",
    "bench-1.1b",
    "bench-6.8b",
}


class Published(NamedTuple):
    """A backbone's sizes, from its configuration on the hub."""

    parameters: float
    kind: str
    layers: int
    width: int
    mlp: int
    positions: int | None


BACKBONES = {
    "facebook/opt-350m": Published(0.331e9, "opt", 24, 1024, 4096, 2048),
    "facebook/opt-2.7b": Published(2.65e9, "opt", 32, 2560, 10240, 2048),
    "HuggingFaceTB/SmolLM2-135M": Published(0.1345e9, "llama", 30, 576, 1536, 8192),
    "openlm-research/open_llama_3b_v2": Published(3.43e9, "llama", 26, 3200, 8640, 2048),
    "RWKV/rwkv-4-3b-pile": Published(2.98e9, "rwkv", 32, 2560, 10240, 1024),
    "state-spaces/mamba-370m-hf": Published(0.372e9, "mamba", 48, 1024, 2048, None),
    "01-ai/Yi-6B": Published(6.06e9, "llama", 32, 4096, 11008, 4096),
    "meta-llama/Llama-2-7b-hf": Published(6.74e9, "llama", 32, 4096, 11008, 4096),
    "mistralai/Mistral-7B-v0.1": Published(7.24e9, "mistral", 32, 4096, 14336, 32768),
    "Qwen/Qwen2.5-14B": Published(14.77e9, "qwen2", 48, 5120, 13824, 131072),
    "meta-llama/Llama-3.1-8B": Published(8.03e9, "llama", 32, 4096, 14336, 131072),
    "Qwen/Qwen3-8B-Base": Published(8.19e9, "qwen3", 36, 4096, 12288, 32768),
}
NAMES = sorted(file.stem for file in FOLDER.glob("*.yaml") if file.stem not in OWN_TESTS)
each_recipe = pytest.mark.parametrize("name", NAMES)


def loaded(name: str) -> Recipe:
    """A recipe by its name."""
    return load_recipe(FOLDER / f"{name}.yaml")


def configuration(published: Published, layers: int, width: int, mlp: int) -> dict[str, object]:
    """A configuration of a backbone's family with its positions, in other sizes."""
    values: dict[str, object] = {"model_type": published.kind, "vocab_size": 64, "hidden_size": width}
    values |= {"num_hidden_layers": layers, "ffn_dim" if published.kind == "opt" else "intermediate_size": mlp}
    if published.kind not in ("mamba", "rwkv"):
        values |= {"num_attention_heads": 4, "max_position_embeddings": published.positions}
    if published.kind in ("llama", "mistral", "qwen2", "qwen3"):
        values |= {"num_key_value_heads": 2}
    return values | ({"context_length": published.positions} if published.kind == "rwkv" else {})


def gib_per_gpu(recipe: Recipe, published: Published, gpus: int) -> float:
    """Weights, gradient sums, optimizer states and one segment's activations, gradients reduced once a step."""
    sizes = read_config(configuration(published, published.layers, published.width, published.mlp))
    held = kept_bytes(sizes, recipe.memory, "segment", batch=recipe.training.batch_size, depth=1, size=BF16)
    stage = stage_of(deepspeed_config(recipe, FOLDER / "x.yaml"))
    if recipe.model.train == "lora":
        assert stage == 2
        return (BF16 * published.parameters + held) / GIB  # adapters and memory are less than a hundredth of it
    shards = SHARDED + (BF16 if stage == 3 else 0)
    return (published.parameters * (REPLICATED + shards / gpus) + held) / GIB


def test_every_backbone_has_a_recipe():
    assert {loaded(name).model.source for name in NAMES} == BACKBONES.keys() and len(NAMES) == len(BACKBONES)


def test_retrieval_by_a_pretrained_backbone(tmp_path):
    """The recipe passes all checks with a tiny backbone and the sample tokenizer."""
    file, out = FOLDER / "retrieval-smollm2.yaml", str(tmp_path / "run")
    source = json.dumps(configuration(BACKBONES["HuggingFaceTB/SmolLM2-135M"], 2, 16, 24) | {"vocab_size": 384})
    tokenizer = str(PROJECT / "hmt_ds/data/samples/words")
    changes = ["--model.source", source, "--model.tokenizer", tokenizer, "--training.output", out]
    assert prepare(load_recipe(file, changes), file).warnings == ()


@pytest.mark.parametrize("name", ["questions-smollm2", "babilong-smollm2"])
def test_questions_on_documents(name, tmp_path):
    """The recipe reads LongBench's fields, and its loss is on the answers alone; its memory is that of pretraining."""
    file, questions = FOLDER / f"{name}.yaml", tmp_path / "questions.jsonl"
    rows = [{"context": "It is in Denver. " * 999, "input": "Where is it?", "answers": ["Denver"], "length": 80}] * 3
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = json.dumps(configuration(BACKBONES["HuggingFaceTB/SmolLM2-135M"], 2, 16, 24) | {"vocab_size": 384})
    changes = ["--model.source", source, "--model.tokenizer", str(PROJECT / "hmt_ds/data/samples/words")]
    changes += ["--data.train.source", str(questions), "--data.validation.source", str(questions)]
    changes += ["--training.output", str(tmp_path / "run"), "--data.cache_dir", str(tmp_path / "cache")]
    recipe = load_recipe(file, changes)
    prepared = prepare(recipe, file)
    assert prepared.warnings == () and recipe.memory == loaded("smollm2-135m").memory
    for documents in (prepared.train, prepared.validation):
        # one word is the answer, and the sample tokenizer has no EOS
        assert [one["weights"].count(1) for one in documents] == [1] * 3 and set(documents[0]["weights"]) == {0, 1}


@each_recipe
def test_settings_are_the_measured_ones(name):
    """Those of tests/benchmarks/QUALITY.md that won; each folder and the head's command have the recipe's name."""
    recipe = loaded(name)
    assert (recipe.memory.interface, recipe.memory.mode, recipe.memory.memory_tokens) == ("adapted", "rmt", 16)
    assert recipe.optimizer.memory_lr is None
    assert (recipe.schedule.name, recipe.schedule.params["cos_min_ratio"]) == ("WarmupCosineLR", 0.1)
    assert recipe.training.output == f"runs/{name}"
    assert f"hmt-ds launch slurm launch/recipes/{name}.yaml --nodes" in (FOLDER / f"{name}.yaml").read_text()


@each_recipe
def test_a_tiny_backbone_of_the_family_passes_all_checks(name, tmp_path, monkeypatch):
    """Positions, DeepSpeed's file, optimizer, schedule, adapters and compute, for each mode of the memory."""
    monkeypatch.setattr(compute_checks, "memory_of_this_machine", lambda: (80 * GIB, "the GPU"))
    values = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    values["model"]["source"] = configuration(BACKBONES[values["model"]["source"]], 2, 16, 24)
    values["training"]["output"] = str(tmp_path / "run")
    file = tmp_path / "recipe.yaml"
    for mode in ("rmt", "hmt", "backbone"):
        file.write_text(yaml.safe_dump(values | {"memory": values["memory"] | {"mode": mode}}))
        assert prepare(load_recipe(file), file, with_data=False).warnings == ()


@each_recipe
def test_the_head_says_what_it_needs(name):
    """The estimate, with a tenth to spare on GPUs of the named size."""
    recipe, text = loaded(name), (FOLDER / f"{name}.yaml").read_text()
    count, size, needed = re.search(r"Needs (one|\d+) GPUs? of (\d+) GiB: (\d+) GiB a GPU \(estimated\)", text).groups()
    gpus = 1 if count == "one" else int(count)
    assert gib_per_gpu(recipe, BACKBONES[recipe.model.source], gpus) == pytest.approx(int(needed), abs=0.6)
    assert int(needed) < 0.9 * int(size)
    row = next(line for line in (PROJECT / "launch/README.md").read_text().splitlines() if f"`{name}.yaml`" in line)
    assert f"{gpus} x {size}" in row and f" {recipe.memory.segment_length} " in row
