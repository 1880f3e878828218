"""One source or several in a recipe, as they are loaded, read, joined and saved."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from bad_folder import make_folder

from hmt_ds.checkpoint import CheckpointError
from hmt_ds.checkpoint.restore import check_identity
from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.load import load_recipe
from hmt_ds.data import WindowLoader, tokens_sha256
from hmt_ds.preflight.prepare import Prepared, prepare
from hmt_ds.training.build import training_loader
from hmt_ds.training.identity import identity


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A correct recipe, and sources of several formats."""
    make_folder(tmp_path)
    rows = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(6)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "many.csv").write_text("id,body\n" + "".join(f'{n},"document {n} of many"\n' for n in range(30)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


FORMATS = "data.train, formats and weights in the loss"
SOURCES: list[dict[str, object]] = [
    {"source": "text.txt", "weight": 2},
    {"source": "asked.jsonl", "format": "completion"},
    {"source": "many.csv", "text_field": "body", "weight": 0.5},
]


def prepared(folder: Path, *words: str) -> Prepared:
    file = str(folder / "recipe.yaml")
    return prepare(load_recipe(file, list(words)), file)


def test_a_list_and_its_overrides(folder):
    words = ["--data.train", json.dumps(SOURCES), "--data.train.1.weight", "7", "--data.mix_by", "documents"]
    recipe = load_recipe(folder / "recipe.yaml", words)
    assert [source.weight for source in recipe.data.sources("train").values()] == [2, 7, 0.5]
    assert recipe.data.mix_by == "documents"
    again = type(recipe).model_validate(recipe.model_dump(mode="json"))
    assert again == recipe
    one = load_recipe(folder / "recipe.yaml")
    assert isinstance(one.model_dump()["data"]["train"], dict)  # a recipe with one source is saved as it was
    assert list(one.data.sources("train")) == ["data.train"]


@pytest.mark.parametrize("key", ["data.train.source", "data.train.3.source", "data.train.x.source"])
def test_an_override_that_names_no_source_of_a_list(folder, key):
    with pytest.raises(
        ConfigError, match=rf"^{key}: data.train is a list of 3 items: name one of them, such as data.train.0$"
    ):
        load_recipe(folder / "recipe.yaml", ["--data.train", json.dumps(SOURCES), f"--{key}", "x"])


def test_sources_of_several_formats_are_joined(folder):
    found = prepared(folder, "--data.train", json.dumps(SOURCES))
    assert [one.documents for one in found.sources] == [1, 6, 30]
    assert [one.found.files for one in found.sources] == [1, 1, 1]
    assert found.train is not None and len(found.train) == 37
    for number, one in enumerate(found.sources):
        first = sum(source.documents for source in found.sources[:number])
        assert found.train[first]["input_ids"] == one.found.tokens[0]["input_ids"]
    assert tokens_sha256(found.train)  # where only some documents have weights


def test_documents_without_weights_count_whole(folder):
    found = prepared(folder, "--data.train", json.dumps(SOURCES))
    options = {"segments": 1, "segment_length": 64, "seed": 0, "rank": 0, "world_size": 1, "batch_size": 1}
    labels = {}
    for batch in WindowLoader(found.train, epochs=1, shuffle=False, **options):
        labels[int(batch.documents)] = int((batch.labels >= 0).sum()), int(batch.lengths)
    for document, (labelled, length) in labels.items():
        whole = length - 1 if length < 64 else 64
        assert labelled == whole if document not in range(1, 7) else 0 < labelled < whole


def test_the_loader_of_a_run_mixes_by_the_weights(folder):
    words = ["--data.train", json.dumps(SOURCES), "--data.mix_by", "documents"]
    recipe = load_recipe(folder / "recipe.yaml", words)
    found = prepare(recipe, folder / "recipe.yaml")
    taken = np.zeros(3)
    for _, batch in zip(range(2000), training_loader(recipe, found), strict=False):
        begun = batch.documents[batch.starts & (batch.documents >= 0)].numpy()
        taken += np.bincount(np.searchsorted([0, 6], begun), minlength=3)
    assert np.abs(taken / taken.sum() - np.array([2, 1, 0.5]) / 3.5).max() < 0.01


def test_four_sources_of_four_formats_by_tokens(folder):
    """After 2,000 steps the shares of tokens are those of the weights, within 1%."""
    asks = {"role": "user", "content": "Who?"}
    chats = [{"messages": [asks, {"role": "assistant", "content": f"Number {n}. " * (n + 1)}]} for n in range(9)]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats))
    (folder / "chat.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    asked = [{"context": f"It rained in {n}. " * n, "input": "When?", "answers": [f"In {n}."]} for n in range(1, 20)]
    (folder / "read.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    sources = [
        *({**source, "weight": weight} for source, weight in zip(SOURCES[1:], (4, 2), strict=True)),
        {"source": "chats.jsonl", "format": "messages", "chat_template": "chat.jinja", "prompt_weight": 0.5},
        {"source": "read.jsonl", "format": "questions", "weight": 3},
    ]
    recipe = load_recipe(folder / "recipe.yaml", ["--data.train", json.dumps(sources), "--training.bptt_depth", "4"])
    found = prepare(recipe, folder / "recipe.yaml")
    ends = np.cumsum([one.documents for one in found.sources])
    read = np.zeros(4)
    for _, batch in zip(range(2000), training_loader(recipe, found), strict=False):
        present = batch.documents >= 0
        which = np.searchsorted(ends, batch.documents[present].numpy(), side="right")
        read += np.bincount(which, batch.lengths[present].numpy(), minlength=4)
    assert np.abs(read / read.sum() - np.array([4, 2, 1, 3]) / 10).max() < 0.01


def test_a_source_without_weight_is_not_read(folder):
    sources = [{"source": "text.txt"}, {"source": "no.txt", "weight": 0}]
    assert [one.source.source for one in prepared(folder, "--data.train", json.dumps(sources)).sources] == ["text.txt"]


def test_the_order_of_documents_belongs_to_a_run(folder):
    """With as many documents and tokens; a checkpoint that does not name the order resumes all the same."""
    texts = [{"text": " ".join(["word"] * number)} for number in (3, 30, 60)]
    (folder / "order.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    (folder / "back.jsonl").write_text("".join(json.dumps(row) + "\n" for row in reversed(texts)))
    found = []
    for name in ("order.jsonl", "back.jsonl"):
        recipe = load_recipe(folder / "recipe.yaml", ["--data.train.source", name])
        found.append(identity(recipe, prepare(recipe, folder / "recipe.yaml")))
    assert found[0]["data.train"] == found[1]["data.train"]
    (folder / "progress.json").write_text(json.dumps({"identity": found[0]}))
    check_identity(folder, found[0])
    with pytest.raises(CheckpointError, match=r"^data\.train, hash of the lengths in order is '\w{12}' in"):
        check_identity(folder, found[1])
    old = {key: value for key, value in found[0].items() if "hash" not in key}
    (folder / "progress.json").write_text(json.dumps({"identity": old}))
    check_identity(folder, found[1])


def test_shares_belong_to_a_run(folder):
    """A run cannot be resumed with others; that of one source is described as it was."""
    recipe = load_recipe(folder / "recipe.yaml", ["--data.train", json.dumps(SOURCES)])
    found = identity(recipe, prepare(recipe, folder / "recipe.yaml"))
    assert found["data.train, shares"] == "1 with weight 2 + 6 with weight 1 + 30 with weight 0.5, by tokens"
    recipe = load_recipe(folder / "recipe.yaml")
    assert "data.train, shares" not in identity(recipe, prepare(recipe, folder / "recipe.yaml"))


def test_packing_and_chat_templates_belong_to_a_run(folder):
    """Both values are in the refusal; a checkpoint that names neither resumes with any."""
    chat = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Nobody."}]
    (folder / "chats.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
    for name, end in (("one", "!"), ("two", "?")):
        text = f"{{% for m in messages %}}{{{{ m.role }}}}: {{{{ m.content }}}}{end}{{% endfor %}}"
        (folder / f"{name}.jinja").write_text(text)

    def described(template: str, *words: str) -> dict[str, object]:
        sources = [SOURCES[0], {"source": "chats.jsonl", "format": "messages", "chat_template": f"{template}.jinja"}]
        recipe = load_recipe(folder / "recipe.yaml", ["--data.train", json.dumps(sources), *words])
        return identity(recipe, prepare(recipe, folder / "recipe.yaml"))

    found = described("one")
    (folder / "progress.json").write_text(json.dumps({"identity": found}))
    check_identity(folder, described("one"))
    with pytest.raises(CheckpointError, match=r"^data\.pack is False in .*, True here: "):
        check_identity(folder, described("one", "--data.pack", "true"))
    with pytest.raises(CheckpointError) as caught:
        check_identity(folder, described("two"))
    hashes = re.findall(
        r"hash of the chat templates is 'none \+ (\w{12})' in .*, 'none \+ (\w{12})' here", str(caught.value)
    )
    assert len(hashes) == 1 and hashes[0][0] != hashes[0][1]
    old = {key: value for key, value in found.items() if "templates" not in key and key != "data.pack"}
    (folder / "progress.json").write_text(json.dumps({"identity": old}))
    check_identity(folder, described("two", "--data.pack", "true"))


def test_held_out_sources_are_read_one_behind_the_other(folder):
    sources = [{"source": "text.txt"}, {"source": "many.csv", "text_field": "body"}]
    found = prepared(folder, "--data.validation", json.dumps(sources))
    assert found.validation is not None and len(found.validation) == 31


def test_a_format_and_its_weights_belong_to_a_run(folder):
    """A run on answers alone is not resumed on all tokens; one on text is described as it was."""

    def described(*sources: dict[str, object]) -> object:
        words = ["--data.train", json.dumps(sources)] if sources else []
        recipe = load_recipe(folder / "recipe.yaml", words)
        return identity(recipe, prepare(recipe, folder / "recipe.yaml")).get(FORMATS)

    asked = SOURCES[1]
    assert described() is None
    assert described(asked) == "completion (prompts 0)"
    assert described(SOURCES[0], asked | {"prompt_weight": 0.5}) == "text (prompts 0) + completion (prompts 0.5)"
