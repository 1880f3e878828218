"""Tokenizers give sentencepiece's own ids, and tokens are made once."""

import io
import json
import logging
import multiprocessing
import shutil
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pytest
from datasets import Dataset
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from transformers import PreTrainedTokenizerFast

import hmt_ds.data
from hmt_ds.data import (
    DataError,
    check_vocabulary,
    document_lengths,
    load_documents,
    load_tokenizer,
    tokenize_documents,
    train_sentencepiece,
)
from hmt_ds.data import tokenize as tokenize_module

NOVEL = Path(hmt_ds.data.__file__).parent / "samples" / "prideprejudice.txt"
TEXTS = ["Hello world.", "two  spaces\n\n\tand a tab ", "Émile ½ ﬁ 你好 🙂", "", "\n starts with a line end"]


@pytest.fixture(autouse=True)
def offline(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return train_sentencepiece([NOVEL], tmp_path_factory.mktemp("tokenizer") / "new", 600)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(str(folder))


def train(path: Path, **options) -> Path:
    model = io.BytesIO()
    with NOVEL.open() as lines:
        settings = {"vocab_size": 600, "model_type": "bpe", "byte_fallback": True, "minloglevel": 2} | options
        SentencePieceTrainer.train(sentence_iterator=(line[:-1] for line in lines), model_writer=model, **settings)
    path.write_bytes(model.getvalue())
    return path


def test_the_trained_folder_gives_sentencepieces_ids(folder, tokenizer):
    own = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    assert own.vocab_size() == len(tokenizer) == 600
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    for text in [*TEXTS, NOVEL.read_text()]:
        ids = tokenizer(text).input_ids
        assert ids == [1, *own.encode(text)]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_training_is_deterministic_and_leaves_no_paths(folder, tmp_path):
    copy = shutil.copyfile(NOVEL, tmp_path / "copy.txt")
    again = train_sentencepiece([copy], tmp_path / "again", 600)
    model = (again / "tokenizer.model").read_bytes()
    assert model == (folder / "tokenizer.model").read_bytes()
    assert b"copy" not in model and b"new" not in model.replace(b"\xe2\x96\x81new", b"")


def test_a_bare_model_file_or_folder_equals_the_trained_folder(folder, tokenizer, tmp_path):
    shutil.copyfile(folder / "tokenizer.model", tmp_path / "tokenizer.model")
    renamed = shutil.copyfile(folder / "tokenizer.model", tmp_path / "austen.model")
    for path in (renamed, tmp_path):
        bare = load_tokenizer(str(path))
        assert [bare(text).input_ids for text in TEXTS] == [tokenizer(text).input_ids for text in TEXTS]
    assert load_tokenizer(str(renamed)).name_or_path == str(renamed)


def test_special_pieces_with_other_names_and_without_bos(tmp_path):
    options = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    model = train(tmp_path / "a.model", bos_piece="<bos>", eos_piece="<eos>", unk_piece="<what>", **options)
    tokenizer, own = load_tokenizer(str(model)), SentencePieceProcessor(model_file=str(model))
    assert tokenizer("It is a truth").input_ids == [own.bos_id(), *own.encode("It is a truth")]
    assert (tokenizer.bos_token, tokenizer.eos_token_id) == ("<bos>", own.eos_id())
    model = train(tmp_path / "b.model", bos_id=-1, **options)
    tokenizer, own = load_tokenizer(str(model)), SentencePieceProcessor(model_file=str(model))
    assert tokenizer("It is a truth").input_ids == own.encode("It is a truth")


def low_ids_with_low_scores(model: Path, path: Path) -> Path:
    """Write a sentencepiece model with runs of blanks as in Mistral's: low ids, the lowest score."""
    proto = ModelProto.FromString(model.read_bytes())
    found = [one for one in proto.pieces if "▁▁" not in one.piece]
    blanks = [ModelProto.SentencePiece(piece="▁" * n, score=-1e9) for n in (2, 4)]
    del proto.pieces[:]
    proto.pieces.extend([*found[:259], *blanks, *found[259:]])
    proto.trainer_spec.vocab_size = len(proto.pieces)
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize("configured", [False, True], ids=["model alone", "with tokenizer_config.json"])
def test_merges_follow_the_scores_and_not_the_ids(folder, tmp_path, configured):
    """transformers' own conversion gives another id for each blank before a word that follows one."""
    model = low_ids_with_low_scores(folder / "tokenizer.model", tmp_path / "tokenizer.model")
    if configured:
        shutil.copyfile(folder / "tokenizer_config.json", tmp_path / "tokenizer_config.json")
    own, tokenizer = SentencePieceProcessor(model_file=str(model)), load_tokenizer(str(tmp_path))
    text = "two  words, three   blanks\n    four, and a novel: " + NOVEL.read_text()
    ids = tokenizer(text).input_ids
    assert ids == [1, *own.encode(text)] and own.piece_to_id("▁▁") in ids
    tokenizer.save_pretrained(tmp_path / "saved")
    assert load_tokenizer(str(tmp_path / "saved"))(text).input_ids == ids


def test_a_score_that_is_damaged_is_no_other_order(folder, tmp_path):
    """sentencepiece follows it without a word: refused."""
    proto = ModelProto.FromString((folder / "tokenizer.model").read_bytes())
    proto.pieces[260].score = -1e9
    (tmp_path / "tokenizer.model").write_bytes(proto.SerializeToString())
    with pytest.raises(DataError, match="that transformers does not follow"):
        load_tokenizer(str(tmp_path))


def test_a_hugging_face_folder(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    assert not (tmp_path / "tokenizer.model").exists()
    again = load_tokenizer(str(tmp_path))
    assert [again(text).input_ids for text in TEXTS] == [tokenizer(text).input_ids for text in TEXTS]


def test_models_that_transformers_would_read_wrongly_are_refused(folder, tmp_path):
    unigram = train(tmp_path / "uni.model", model_type="unigram")
    with pytest.raises(DataError, match=r"uni.model is not a BPE model.*convert it to a Hugging Face tokenizer"):
        load_tokenizer(str(unigram))
    with pytest.raises(DataError, match=r"nfkc.model normalises text or has special pieces"):
        load_tokenizer(str(train(tmp_path / "nfkc.model")))
    shutil.copyfile(unigram, tmp_path / "tokenizer.model")
    shutil.copyfile(folder / "tokenizer_config.json", tmp_path / "tokenizer_config.json")
    with pytest.raises(DataError, match=r"tokenizer.model is not a BPE model"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("absent/sub/folder", "is neither a file, a folder nor a possible name on the hub: check the path"),
        ("absent.model", "'absent.model': there is no such file: check the path"),
        ("owner/absent", "'owner/absent': no such folder here, and the hub cannot be reached; name a folder, make one"),
    ],
)
def test_absent_tokenizers(path, message):
    with pytest.raises(DataError, match=message) as caught:
        load_tokenizer(path)
    assert "\n" not in str(caught.value)


def test_unreadable_tokenizers(tmp_path):
    (tmp_path / "junk.model").write_text("junk")
    with pytest.raises(DataError, match=r"junk.model is not a sentencepiece model"):
        load_tokenizer(str(tmp_path / "junk.model"))
    with pytest.raises(DataError, match="cannot load a tokenizer from"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="cannot load a tokenizer from"):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_with_code_of_its_own_is_not_run(tmp_path):
    (tmp_path / "own.py").write_text("raise SystemExit('this was run')")
    config = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="cannot load a tokenizer from"):
        load_tokenizer(str(tmp_path))


def test_what_cannot_be_trained(tmp_path):
    with pytest.raises(DataError, match=r"cannot train a vocabulary of 100 on 1 file: .*smaller than required_chars"):
        train_sentencepiece([NOVEL], tmp_path / "a", 100)
    (tmp_path / "short.txt").write_text("A short text.\n")
    with pytest.raises(DataError, match=r"cannot train a vocabulary of 5000 on 1 file: .*too high"):
        train_sentencepiece([tmp_path / "short.txt"], tmp_path / "a", 5000)
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"cannot read .*bad.txt as UTF-8 text"):
        train_sentencepiece([tmp_path / "bad.txt"], tmp_path / "a", 600)
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match="there is no text"):
        train_sentencepiece([tmp_path / "empty.txt"], tmp_path / "a", 600)


def test_check_vocabulary(tokenizer):
    check_vocabulary(tokenizer, 600)
    with pytest.raises(DataError, match=r"go up to 599, but the model's vocabulary has 599 ids"):
        check_vocabulary(tokenizer, 599)


@pytest.fixture
def documents() -> Dataset:
    return Dataset.from_dict({"text": ["It is a truth", "universally acknowledged", "Émile"], "extra": [1, 2, 3]})


def test_tokens_have_bos_and_one_eos(documents, tokenizer, tmp_path):
    tokens = tokenize_documents(documents, tokenizer, cache_dir=tmp_path)
    expected = [[*tokenizer(text).input_ids, 2] for text in documents["text"]]
    assert tokens[:] == {"input_ids": expected, "length": [len(ids) for ids in expected]}
    assert tokens.features["input_ids"].feature.dtype == "int32"
    lengths = document_lengths(tokens)
    assert isinstance(lengths, np.ndarray) and lengths.dtype == np.int64
    assert lengths.tolist() == tokens[:]["length"]
    plain = tokenize_documents(documents, tokenizer, add_eos=False, cache_dir=tmp_path)
    assert plain[:]["input_ids"] == [ids[:-1] for ids in expected]


def test_a_tokenizer_that_adds_eos_itself_gets_no_second_one(documents, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "eos")
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"add_eos_token": True}
    (tmp_path / "eos" / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(str(tmp_path / "eos"))
    assert tokenizer("a").input_ids[-1] == 2
    tokens = tokenize_documents(documents, tokenizer, cache_dir=tmp_path)
    assert [ids.count(2) for ids in tokens[:]["input_ids"]] == [1, 1, 1]


def count_calls(monkeypatch) -> list[int]:
    calls, real = [], tokenize_module._tokenize_batch

    def counted(batch, numbers, **options):
        calls.append(len(batch["text"]))
        return real(batch, numbers, **options)

    monkeypatch.setattr(tokenize_module, "_tokenize_batch", counted)
    return calls


def test_tokens_are_made_once(folder, tokenizer, tmp_path, monkeypatch):
    calls = count_calls(monkeypatch)
    file = tmp_path / "a.txt"
    file.write_text("Title\nChapter 1\none\nChapter 2\ntwo\n")

    def tokens(separator="^Chapter", using=tokenizer, **options) -> Dataset:
        documents = load_documents(str(file), separator=separator)
        return tokenize_documents(documents, using, cache_dir=tmp_path / "cache", **options)

    first = tokens()
    assert calls == [3]
    assert tokens()[:] == first[:]
    shutil.copytree(folder, tmp_path / "elsewhere")
    tokens(using=load_tokenizer(str(tmp_path / "elsewhere")))  # the same tokenizer under another path
    assert calls == [3]
    tokens(add_eos=False)
    tokens(separator="^Chapter 1")
    tokens(using=load_tokenizer(str(train_sentencepiece([NOVEL], tmp_path / "other", 700))))
    assert calls == [3, 3, 2, 3]
    file.write_text("Title\nChapter 1\nchanged\nChapter 2\ntwo\n")
    assert tokens()[1] != first[1]
    assert calls == [3, 3, 2, 3, 3]


def test_the_default_cache_is_that_of_datasets(documents, tokenizer, monkeypatch):
    calls = count_calls(monkeypatch)
    for _ in range(2):
        tokenize_documents(documents, tokenizer)
    assert calls == [3]
    assert len(list((Path(datasets.config.HF_DATASETS_CACHE) / "hmt_ds_tokens").glob("tokens-*.arrow"))) == 1


def test_several_processes_may_race(tokenizer, tmp_path):
    documents = Dataset.from_dict({"text": NOVEL.read_text().split("\n\n")})
    fork = multiprocessing.get_context("fork")
    options = {"cache_dir": tmp_path}
    racers = [fork.Process(target=tokenize_documents, args=(documents, tokenizer), kwargs=options) for _ in range(3)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert [racer.exitcode for racer in racers] == [0, 0, 0]
    cache, locked, digest = sorted(tmp_path.iterdir())  # no temporary file is left
    assert (cache.suffix, locked.suffix, digest.suffix) == (".arrow", ".lock", ".sha256")
    assert len(tokenize_documents(documents, tokenizer, cache_dir=tmp_path)) == len(Dataset.from_file(str(cache)))


def test_two_processes_make_the_same_tokens(documents, tokenizer, tmp_path):
    one = tokenize_documents(documents, tokenizer, cache_dir=tmp_path / "one")
    two = tokenize_documents(documents, tokenizer, cache_dir=tmp_path / "two", processes=2)
    assert one[:] == two[:]


def test_a_text_beyond_the_models_maximum_gives_no_warning(tokenizer, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(tokenizer, "model_max_length", 4)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    caplog.set_level(logging.WARNING, logger="transformers")  # another test may have asked for silence
    documents = Dataset.from_dict({"text": ["much longer than four tokens are"]})
    tokenize_documents(documents, tokenizer, cache_dir=tmp_path)
    assert "maximum sequence length" not in caplog.text
    tokenizer(documents[0]["text"])
    assert "maximum sequence length" in caplog.text


def test_documents_without_tokens_are_dropped(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "plain")
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"add_bos_token": False}
    (tmp_path / "plain" / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(str(tmp_path / "plain"))
    documents = Dataset.from_dict({"text": ["a", "", "b"]})
    tokens = tokenize_documents(documents, tokenizer, add_eos=False, cache_dir=tmp_path)
    assert [tokenizer.decode(ids) for ids in tokens[:]["input_ids"]] == ["a", "b"]
    assert document_lengths(tokens).tolist() == tokens[:]["length"]
    with pytest.raises(DataError, match=r"makes no token of any document \(1 in all\)"):
        tokenize_documents(documents.select([1]), tokenizer, add_eos=False, cache_dir=tmp_path)


def test_a_damaged_piece_changes_only_its_own_words(folder, tmp_path):
    """sentencepiece joins letters that are no pieces, and transformers does not: refused."""
    content = (folder / "tokenizer.model").read_bytes()
    place = content.index(b"\x08\n\x01w\x15")
    (tmp_path / "tokenizer.model").write_bytes(content[: place + 3] + b"\x7f" + content[place + 4 :])
    with pytest.raises(DataError, match=r"[^\n]+ that transformers does not follow [^\n]+$"):
        load_tokenizer(str(tmp_path / "tokenizer.model"))


def test_a_panic_of_rust_is_an_error(folder, tmp_path):
    """Of a template with a token that it does not define."""
    tokenizer = load_tokenizer(str(folder)).backend_tokenizer
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["post_processor"]["special_tokens"].clear()
    content["post_processor"]["special_tokens"]["x"] = {"id": "x", "ids": [1], "tokens": ["x"]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"^cannot load a tokenizer from [^\n]+$") as raised:
        load_tokenizer(str(tmp_path))
    assert not isinstance(raised.value.__cause__, Exception)


def test_a_setting_that_fails_when_text_is_read(folder, tmp_path):
    load_tokenizer(str(folder)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": "100"}))
    with pytest.raises(DataError, match=r"^cannot load a tokenizer from [^\n]+$"):
        load_tokenizer(str(tmp_path))
