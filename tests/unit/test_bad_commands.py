"""Wrong options of the commands: each problem is one line, and no file changes."""

import json
import sys
from pathlib import Path

import pytest
from bad_folder import contents, errors_in, make_folder

from hmt_ds import cli

TRAIN, BENCH = ["train", "recipe.yaml"], ["bench", "recipe.yaml"]
TOKENIZER = ["tokenizer", "text.txt", "--vocab-size", "300", "--output"]
BELOW = "is below text.txt, a file: give another path"
CASES = [
    ([*TRAIN, "--data.cache_dir", "text.txt/cache"], [f"data.cache_dir: text.txt/cache {BELOW}"]),
    ([*TRAIN, "--training.output", "text.txt/run"], [f"training.output: text.txt/run {BELOW}"]),
    (
        [*TRAIN, "--model.source.num_attention_heads", "0", "--model.source.num_hidden_layers", "-1"],
        [
            "model.source.num_hidden_layers is -1: must be at least 1",
            "model.source.num_attention_heads is 0: must be at least 1",
        ],
    ),
    (
        [*TRAIN, "--optimizer.params.betas", "[0.9]"],
        ["optimizer.params.betas is [0.9]: AdamW takes 2 numbers, as [0.9, 0.999]"],
    ),
    (
        [*TRAIN, "--optimizer.params.betas", "[0.9, 0.95, 0.99]", "--optimizer.name", "Lion"],
        ["optimizer.params.betas is [0.9, 0.95, 0.99]: Lion takes 2 numbers"],
    ),
    (
        [*TRAIN, "--optimizer.params", "{foreach: true, fused: true}"],
        ["optimizer.params: AdamW does not take {'foreach': True, 'fused': True}: "],
    ),
    *(
        (
            [*TRAIN, "--optimizer.name", name, "--optimizer.params.foo", "3"],
            [f"optimizer.params: {name} does not take {{'foo': 3}}: "],
        )
        for name in ("Lion", "lion", "adamw")
    ),
    (
        ["evaluate", "no_weights"],
        ["no_weights is a model, not a run: evaluate a recipe with --model.source no_weights"],
    ),
    ([*TOKENIZER, "text.txt"], ["the tokenizer cannot be written: text.txt is a file, give a folder"]),
    ([*TOKENIZER, "text.txt/new"], [f"the tokenizer cannot be written: text.txt/new {BELOW}"]),
    ([*TOKENIZER, "tokenizer"], ["tokenizer has a tokenizer already (tokenizer.model, tokenizer_config.json): name"]),
    ([*BENCH, "--json", "recipe.yaml"], ["--json: recipe.yaml exists and is not a .json file"]),
    (
        [*BENCH, "--json", "text.txt/x.json", "--trace", "text.txt/x"],
        [f"--json: text.txt/x.json {BELOW}", f"--trace: text.txt/x {BELOW}"],
    ),
    (
        [*BENCH, "--steps", "0", "--training.stepps", "1"],
        ["--steps: must be at least 1, got '0'", "training.stepps: unknown key"],
    ),
    (
        [*BENCH, "--steps", "0", "--compute.summary_batch", "50"],
        ["--steps: must be at least 1, got '0'", "compute.summary_batch is 50"],
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Make a folder that all cases share: none of them may change it."""
    folder = tmp_path_factory.mktemp("bad_commands")
    make_folder(folder)
    return folder


@pytest.mark.parametrize(("words", "lines"), CASES, ids=lambda words: "_".join(words[2:]).replace("/", ".")[:60])
def test_problem_is_one_line(folder, monkeypatch, capsys, words, lines):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["hmt-ds", *words])
    monkeypatch.setattr("hmt_ds.launch.start.run_ranks", lambda *arguments: pytest.fail("ranks were started"))
    before = contents(folder)
    with pytest.raises(SystemExit) as end:
        cli.main()
    errors = errors_in(capsys.readouterr().err)
    assert end.value.code == 2 and len(errors) == len(lines), errors
    assert all(line in error for line, error in zip(lines, errors, strict=True)), errors
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["old.json", "new.json", "new.txt", "new/numbers"])
def test_bench_may_overwrite_its_numbers(folder, monkeypatch, tmp_path, name):
    (tmp_path / "old.json").write_text(json.dumps({}))
    started = []
    monkeypatch.chdir(folder)
    monkeypatch.setattr("hmt_ds.launch.start.run_ranks", lambda module, words, ranks: started.append(words) or 0)
    monkeypatch.setattr(sys, "argv", ["hmt-ds", *BENCH, "--json", str(tmp_path / name)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0 and f"--json={tmp_path / name}" in started[0]
