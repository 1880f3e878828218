"""Token ids of pieces are those of the whole text, for each kind of tokenizer."""

import random
import re
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

import hmt_ds.data
from hmt_ds.data import load_tokenizer, token_work, tokenize_documents, train_sentencepiece
from hmt_ds.data import pieces as pieces_module
from hmt_ds.data.pieces import NoJoin, encode_pieces, join, join_all, spans, splits_words

NOVEL = (Path(hmt_ds.data.__file__).parent / "samples" / "prideprejudice.txt").read_text()
# the patterns of cl100k (GPT-4, Llama 3 and Qwen are like it) and of DeepSeek
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
DEEPSEEK = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u30ff]+",
    r"[!-/:-~]?[A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|\s+(?!\S)|\s+",
)


def byte_level(*patterns: str, prefix: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    last = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=not patterns)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, last]) if splits else last
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def without_words(model) -> Tokenizer:
    """As Llama 2's: blanks become pieces of a text that is one word."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


def with_words(model, normalizer) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizers.Metaspace()
    return tokenizer


def bert() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    return tokenizer


ALPHABET = pre_tokenizers.ByteLevel.alphabet()
KINDS = {
    "gpt2": (byte_level(), trainers.BpeTrainer(initial_alphabet=ALPHABET)),
    "roberta": (byte_level(prefix=True), trainers.BpeTrainer(initial_alphabet=ALPHABET)),
    "cl100k": (byte_level(CL100K), trainers.BpeTrainer(initial_alphabet=ALPHABET)),
    "deepseek": (byte_level(*DEEPSEEK), trainers.BpeTrainer(initial_alphabet=ALPHABET)),
    "llama": (without_words(models.BPE(unk_token="<unk>", fuse_unk=True)), trainers.BpeTrainer()),
    "t5": (with_words(models.Unigram(), normalizers.NFKC()), trainers.UnigramTrainer(unk_token="<unk>")),
    "gemma": (with_words(models.BPE(unk_token="<unk>"), None), trainers.BpeTrainer()),
    "bert": (bert(), trainers.WordPieceTrainer()),
}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request) -> PreTrainedTokenizerFast:
    """A tokenizer with BOS, EOS, and a token that takes the blanks around it."""
    backend, trainer = KINDS[request.param]
    trainer.vocab_size, trainer.show_progress = 1000, False
    trainer.special_tokens = ["<unk>", "[UNK]", "<s>", "</s>"]
    words = backend.pre_tokenizer is not None
    backend.train_from_iterator([NOVEL[: 200_000 if words else 20_000]], trainer)
    backend.add_special_tokens([AddedToken("<mask>", lstrip=True, rstrip=True)])
    ends = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)])
    backend.post_processor = processors.Sequence([p for p in (backend.post_processor, ends) if p is not None])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def odd_text() -> str:
    """What is special to some pre-tokenizer, in random order: numbers, blanks, scripts, marks, added tokens."""
    draw = random.Random(0)
    parts = [
        lambda: NOVEL[(start := draw.randrange(len(NOVEL))) : start + draw.randrange(300)],
        lambda: "".join(draw.choices("0123456789", k=draw.randrange(40))),
        lambda: draw.choice([" ", "\n", "\t", "\r\n", " \n"]) * draw.randrange(30),
        lambda: "".join(draw.choices("你好世界。かなカナ", k=draw.randrange(60))),
        lambda: "".join(draw.choices("🙂👩‍👩‍👧é́½ﬁΣς", k=draw.randrange(30))),
        lambda: " <mask> </s>",
        lambda: "".join(draw.choices("!?.,'\"-_()<>/", k=draw.randrange(30))),
        lambda: draw.choice("aZ") * draw.randrange(60),
    ]
    return "".join(draw.choices(parts, k=1)[0]() for _ in range(1500))


def in_pieces(text: str, tokenizer, piece: int, overlap: int) -> np.ndarray:
    raw, words = memoryview(text.encode()), bool(splits_words(tokenizer))
    parts = spans(len(raw), piece, overlap)
    groups = [encode_pieces(raw, parts[first : first + 3], overlap, tokenizer) for first in range(0, len(parts), 3)]
    return np.concatenate(list(join((join_all(group, words) for group in groups), words)))


@pytest.mark.parametrize("text", [NOVEL[:300_000], odd_text()], ids=["novel", "odd"])
def test_pieces_are_the_whole(tokenizer, text):
    expected = tokenizer(text).input_ids
    found = {}
    for piece, overlap in ((1500, 1000), (5000, 800), (40_000, 2000)):
        try:
            found[piece] = in_pieces(text, tokenizer, piece, overlap)
        except NoJoin:
            continue
        assert found[piece].tolist() == expected, piece
    assert found  # it was not refused everywhere


def test_sentencepiece(tmp_path):
    """Our own tokenizers: byte-pair encoding without words, characters outside the vocabulary in bytes."""
    (tmp_path / "text.txt").write_text(NOVEL[:100_000])
    tokenizer = load_tokenizer(str(train_sentencepiece([tmp_path / "text.txt"], tmp_path / "tokenizer", 600)))
    assert splits_words(tokenizer) is False
    for text in (NOVEL[:200_000], odd_text()):
        assert in_pieces(text, tokenizer, 3000, 800).tolist() == tokenizer(text).input_ids


def digits_by_three() -> PreTrainedTokenizerFast:
    backend = byte_level(CL100K)
    vocabulary = {letter: number for number, letter in enumerate(sorted(ALPHABET))}
    pairs = [(a, b) for a in "0123456789" for b in "0123456789"]
    vocabulary |= {a + b: len(vocabulary) + number for number, (a, b) in enumerate(pairs)}
    backend.model = models.BPE(vocab=vocabulary, merges=pairs)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def test_numbers_grouped_by_three_are_not_joined_out_of_step():
    """Overlaps that do not begin at a multiple of three: a digit's token depends on where the number began."""
    tokenizer, text = digits_by_three(), "one " + "1234567890" * 2000 + " two" * 2000
    with pytest.raises(NoJoin):
        in_pieces(text, tokenizer, 1000, 400)
    assert in_pieces(text, tokenizer, 1 << 20, 400).tolist() == tokenizer(text).input_ids


@pytest.mark.parametrize("tail", [" and words" * 3000, ""], ids=["words follow", "to the end"])
def test_documents_whose_pieces_do_not_agree_get_longer_ones(tmp_path, monkeypatch, tail):
    monkeypatch.setattr(token_work, "PIECE", 1000)
    monkeypatch.setattr(token_work, "OVERLAP", 400)
    monkeypatch.setattr(token_work, "LONG", 2000)
    sizes, real = [], pieces_module.encode_pieces
    monkeypatch.setattr("hmt_ds.data.tokenize.PIECE", 1000)
    monkeypatch.setattr("hmt_ds.data.tokenize.OVERLAP", 400)
    monkeypatch.setattr(
        "hmt_ds.data.tokenize.encode_pieces",
        lambda text, parts, *more, **options: sizes.append(parts[0][1] - parts[0][0]) or real(text, parts, *more),
    )
    tokenizer, text = digits_by_three(), "é one " * 400 + "1234567890" * 500 + tail
    tokens = tokenize_documents(Dataset.from_dict({"text": ["short", text]}), tokenizer, cache_dir=tmp_path)
    assert tokens[1]["input_ids"] == tokenizer(text).input_ids
    assert min(sizes) <= 1000 and max(sizes) > 5000


def test_which_tokenizers_are_read_in_pieces():
    words = byte_level()
    assert splits_words(PreTrainedTokenizerFast(tokenizer_object=words)) is True
    assert splits_words(PreTrainedTokenizerFast(tokenizer_object=without_words(models.BPE()))) is False
    best_path = without_words(models.Unigram([("<unk>", 0.0)], 0))  # any token may depend on any other
    assert splits_words(PreTrainedTokenizerFast(tokenizer_object=best_path)) is None
    random_merges = byte_level()
    random_merges.model = models.BPE(dropout=0.1)
    assert splits_words(PreTrainedTokenizerFast(tokenizer_object=random_merges)) is None


def test_memory_stays_flat(tmp_path):
    """A document that took 1.5 GB in one piece. The peak is of this process, since it was reset."""
    (tmp_path / "text.txt").write_text(NOVEL)
    tokenizer = load_tokenizer(str(train_sentencepiece([tmp_path / "text.txt"], tmp_path / "tokenizer", 600)))
    from_disk = tmp_path / "documents"
    Dataset.from_dict({"text": [NOVEL * 10]}).save_to_disk(from_disk)
    documents = Dataset.load_from_disk(from_disk)
    tokenize_documents(
        documents.select([0]).map(lambda row: {"text": row["text"][:100]}), tokenizer, cache_dir=tmp_path
    )
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_mib()
    tokens = tokenize_documents(documents, tokenizer, cache_dir=tmp_path)
    assert peak_mib() - before < 150
    assert tokens[0]["length"] > 10 * 200_000


def peak_mib() -> float:
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
