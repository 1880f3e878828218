"""Train a sentencepiece BPE tokenizer on the texts of data sources."""

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from datasets import Dataset
from sentencepiece import SentencePieceTrainer

from hmt_ds.config.value_checks import why_no_folder
from hmt_ds.data.errors import DataError, first_line
from hmt_ds.data.file_kinds import COMPRESSIONS, kind_of
from hmt_ds.data.sources import read_source
from hmt_ds.data.special_tokens import texts_in
from hmt_ds.data.tokenizers import FILES, write_config
from hmt_ds.reporting.counted import counted

LONGEST = 1 << 20  # bytes of a line; sentencepiece leaves out longer ones
LETTERS = LONGEST // 4  # of a line that surely fits: UTF-8 has at most 4 bytes per letter


def train_sentencepiece(sources: Sequence[str | Path], out: Path, vocab_size: int, *, text_field: str = "text") -> Path:
    """Train a BPE tokenizer on the texts of data sources and write it as a Hugging Face folder.

    The same files give the same bytes. Text is not normalised; characters outside the vocabulary become bytes, so every
    text can be encoded and decoded without loss. unk = 0, BOS = 1, EOS = 2.

    Args:
        sources: Files, folders, patterns, addresses or names on the hub. A file of an unknown kind is read as text.
        out: Folder to write `tokenizer.model` and `tokenizer_config.json` to; it must not hold a tokenizer yet.
        vocab_size: Number of tokens, at least 259 (three special ones and 256 bytes) plus the characters used.
        text_field: The column that holds the text.

    Returns:
        The folder `out`.

    Raises:
        DataError: A source cannot be read, there is too little text for the vocabulary or too many characters, or `out`
            cannot be written or has a tokenizer.
    """
    _check_place(out)
    lines = (line for source in sources for line in source_lines(str(source), text_field))
    return train_on_lines(lines, out, vocab_size, counted(len(sources), "file"))


def train_on_lines(lines: Iterable[str], out: Path, vocab_size: int, what: str) -> Path:
    """Train a BPE tokenizer on lines of text and write it as a Hugging Face folder.

    Args:
        lines: Lines without their line ends.
        out: Folder to write `tokenizer.model` and `tokenizer_config.json` to; it must not hold a tokenizer yet.
        vocab_size: Number of tokens, at least 259 (three special ones and 256 bytes) plus the characters used.
        what: Where the lines are from, for errors.

    Returns:
        The folder `out`.

    Raises:
        DataError: There is too little text for the vocabulary or too many characters, or `out` cannot be written.
    """
    _check_place(out)
    model = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=short_lines(lines),  # not `input`: file names would be written into the model
            model_writer=model,
            vocab_size=vocab_size,
            model_type="bpe",
            byte_fallback=True,
            character_coverage=1.0,
            normalization_rule_name="identity",  # LlamaTokenizer does not normalise, so neither may the model
            remove_extra_whitespaces=False,
            max_sentence_length=LONGEST,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            num_threads=2,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = first_line(error).rsplit("]", 1)[-1].strip() or "there is no text"  # after the failed C++ condition
        raise DataError(
            f"cannot train a vocabulary of {vocab_size} on {what}: {reason}; change the size, or give more text"
        ) from error
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "tokenizer.model").write_bytes(model.getvalue())
        write_config(out)
    except OSError as error:
        raise DataError(f"the tokenizer cannot be written to {out}: {first_line(error)}; name another folder") from None
    return out


def lines_of(documents: Dataset) -> Iterator[str]:
    """Yield the lines of all texts in a data set's rows, whatever columns, lists and fields hold them.

    Args:
        documents: The data set.
    """
    for row in documents:
        for text in texts_in(row):
            yield from text.removesuffix("\n").split("\n")


def short_lines(lines: Iterable[str]) -> Iterator[str]:
    """Yield lines of text, cutting those of more than 262,144 characters, at blanks if there are any.

    sentencepiece skips lines over 1 MiB.

    Args:
        lines: Lines without their line ends.
    """
    for line in lines:
        rest = line
        while len(rest) > LETTERS:
            cut = rest.rfind(" ", 0, LETTERS) + 1 or LETTERS
            yield rest[:cut]
            rest = rest[cut:]
        yield rest


def source_lines(source: str, text_field: str) -> Iterator[str]:
    """Yield the lines of a data source's texts; a plain text file is read line by line, to save memory.

    Args:
        source: File, folder, pattern, address, or name on the hub.
        text_field: The column that holds the text.

    Raises:
        DataError: The source cannot be read.
    """
    file = Path(source)
    is_table = file.is_file() and kind_of(file) not in ("text", None)
    if not file.is_file() or is_table or file.suffix.lower() in COMPRESSIONS:
        yield from lines_of(read_source(source, text_field=text_field).documents)
        return
    try:
        with file.open(encoding="utf-8-sig") as lines:
            yield from (line.rstrip("\n") for line in lines)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot read {file} as UTF-8 text: {first_line(error)}; convert it, or leave it out"
        ) from error


def _check_place(out: Path) -> None:
    if reason := why_no_folder(out):
        raise DataError(f"the tokenizer cannot be written: {reason}")
    if there := [name for name in FILES if (out / name).exists()]:
        raise DataError(f"{out} has a tokenizer already ({', '.join(there)}): name another folder, or remove it")
