"""A model card of another person's run: its texts stay texts, and no other file gets into the converted folder."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from tiny import make_settings

from hmt_ds.config.recipe_yaml import write_yaml
from hmt_ds.conversion.card import card, code, picture_of, plain
from hmt_ds.conversion.from_run import find_checkpoint

HOSTILE = "<img src=x onerror=alert(1)> ``` ````\n# Title\n[a](javascript:b) | *x* `y` --- &lt; é"


def run_of(folder: Path, text: str) -> Path:
    """Write a run whose recipe, evaluation and name hold a text."""
    (folder / "evaluation").mkdir()
    recipe = {"model": {"source": text}, text: [text], "literal": f"one\n```\n{text}\n```\n"}
    (folder / "recipe.yaml").write_text(write_yaml(recipe))
    row = {"segments_read": 1, "below": 2, "tokens": 3, "perplexity": 2.0, "nats": [1.0, None, None]}
    data = {"source": text, "sha256": text, "documents": 1, "tokens": 3}
    evaluation = {"step": 1, "data": data, "verdict": text, "rows": [row]}
    (folder / "evaluation" / "step_000001.json").write_text(json.dumps(evaluation))
    return folder


def tokens_of(text: str) -> list[str]:
    """Return the kinds of all Markdown elements of a text, and inner ones."""
    found = MarkdownIt("commonmark").enable("table").parse(text.partition("\n---\n")[2])
    return [inner.type for one in found for inner in (one, *(one.children or []))]


def test_hostile_texts_are_texts(tmp_path):
    """The card has the same elements as with a harmless text, and reads back as that text."""
    cards = []
    for name, text in (("hostile", HOSTILE), ("harmless", "word")):
        (tmp_path / name).mkdir()
        run = run_of(tmp_path / name, text)
        cards.append(card("model", f"{text}/step_000001", make_settings(), base=text, run=run, step=1))
    kinds = [tokens_of(text) for text in cards]
    assert not any("html" in kind for kind in kinds[0])
    assert kinds[0].count("fence") == kinds[1].count("fence") == 2 and kinds[0].count("link_open") == 1
    assert [kind for kind in kinds[0] if kind != "text"] == [kind for kind in kinds[1] if kind != "text"]
    assert "onerror=alert(1)&#62;" in cards[0] and "So word." in cards[1] and "from `word/step_000001`" in cards[1]


@pytest.mark.parametrize("text", [HOSTILE, "word"])
def test_metadata_has_the_figures_of_the_evaluation(tmp_path, text):
    """As the hub's model index, whatever the run is called; none without an evaluation."""
    run = run_of(tmp_path, text)
    parsed = ModelCard(card("model", text, make_settings(), base=text, run=run, step=1)).data
    (result,) = parsed.eval_results
    assert (result.metric_type, result.metric_value) == ("perplexity", 2.0)
    assert result.metric_name == "perplexity behind 1 to 1 segments" and result.dataset_name == Path(text).name
    assert parsed.model_name == text and parsed.base_model == text and parsed.tags == ["hmt", "long-context"]
    for other in (card("model", text, make_settings(), run=run), card("model", text, make_settings())):
        assert ModelCard(other).data.to_dict() == {"library_name": "transformers", "tags": ["hmt", "long-context"]}


@pytest.mark.parametrize("text", [HOSTILE, "`", "``a``", "a", "a` b", "<b>", "x|y", "_x_ a_b", "https://a.b"])
def test_texts_are_shown_as_they_are(text):
    parsed = MarkdownIt("commonmark").parse(f"x {code(text)} y {plain(text)} z")
    (span,) = [inner.content for one in parsed for inner in one.children or [] if inner.type == "code_inline"]
    assert span == " ".join(text.split())
    shown = "".join(inner.content for one in parsed for inner in one.children or [] if inner.type != "code_inline")
    assert shown == f"x  y {text} z"


def test_only_a_picture_of_the_run_is_copied(tmp_path):
    secret, picture = tmp_path / "secret", tmp_path / "loss.png"
    secret.write_bytes(b"\x89PNG\r\n\x1a\nsecret")
    assert picture_of(tmp_path) is None
    picture.symlink_to(secret)
    assert picture_of(tmp_path) is None
    picture.unlink()
    picture.write_text("secret")
    assert picture_of(tmp_path) is None
    picture.write_bytes(secret.read_bytes())
    assert picture_of(tmp_path) == picture


@pytest.mark.parametrize("named", ["run", "run/checkpoints", "run/checkpoints/step_000001"])
def test_checkpoints_on_another_file_system(tmp_path, monkeypatch, named):
    """`checkpoints` may be a link: the recipe is beside the link."""
    monkeypatch.setattr("hmt_ds.conversion.from_run.newest_intact", lambda folder, say: folder / "step_000001")
    monkeypatch.setattr("hmt_ds.conversion.from_run.find_damage", lambda checkpoint: [])
    (tmp_path / "scratch" / "step_000001").mkdir(parents=True)
    (tmp_path / "scratch" / "step_000001" / "manifest.json").write_text("{}")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").touch()
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "scratch")
    assert find_checkpoint(tmp_path / named, [])[1] == tmp_path / "run"
