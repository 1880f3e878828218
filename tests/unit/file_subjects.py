"""What `file_mutations.py` mutates: files, how a run reads them, and how they are read independently."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import torch
from pyarrow import parquet
from safetensors import safe_open
from safetensors.torch import load_file
from test_checkpoint_damage import write as write_checkpoint
from tiny import LLAMA
from tiny_folder import write_tiny
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import hmt_ds
from hmt_ds.backbones import BackboneError, build_model, check_backbone, check_weights, read_config
from hmt_ds.checkpoint import newest_intact
from hmt_ds.checkpoint.files import newest_state, read_manifest
from hmt_ds.checkpoint.run_state import read_run_state
from hmt_ds.data import DataError, load_tokenizer, read_source, train_sentencepiece
from hmt_ds.data.prepared import read_tokens
from hmt_ds.data.tokenize import TEXT

Say = Callable[[str], None]
WORDS = "A short document with words, and some more of them for a tokenizer: é, 10 and\ttabs."
IDS = torch.arange(3, 23)[None]


@dataclass
class Subject:
    """Files, and how they are read.

    Attributes:
        files: the files to mutate, one at a time.
        read: reads them; it is given a function that is called with each line that a user would see.
        errors: the errors whose message is a line for the user.
        says: reads what the files say, independently; None if any change of the result must be noticed.
    """

    files: list[Path]
    read: Callable[[Say], Any]
    errors: tuple[type[Exception], ...]
    says: Callable[[], Any] | None = None


def documents(file: Path, says: Callable[[], Any]) -> Subject:
    """A file of documents."""
    datasets.config.HF_DATASETS_CACHE = file.parent / "datasets"
    datasets.disable_progress_bars()

    def read(say: Say) -> Any:
        found = read_source(str(file))
        for line in found.left_out:
            say(line)
        return found.documents["text"][:]

    return Subject([file], read, (DataError,), says)


def jsonl(folder: Path) -> Subject:
    """JSON lines with other fields beside the text."""
    file = folder / "text.jsonl"
    file.write_text(
        "".join(json.dumps({"text": f"{n} {WORDS}", "id": n, "more": {"a": [n]}}) + "\n" for n in range(20))
    )

    def says() -> list[str]:
        return [json.loads(line.decode())["text"] for line in file.read_bytes().split(b"\n") if line.strip()]

    return documents(file, says)


def parquet_file(folder: Path) -> Subject:
    """A Parquet file of two columns."""
    file = folder / "text.parquet"
    rows = pa.table({"text": [f"{n} {WORDS}" for n in range(40)], "id": list(range(40))})
    parquet.write_table(rows, file, row_group_size=15)
    return documents(file, lambda: parquet.read_table(file, columns=["text"])["text"].to_pylist())


def fast_tokenizer(folder: Path) -> Path:
    """Write a tokenizer of the `tokenizers` library."""
    (folder / "text.txt").write_text(f"{WORDS}\n" * 50)
    train_sentencepiece([folder / "text.txt"], folder / "trained", 300)
    trained = load_tokenizer(str(folder / "trained"))
    fast = PreTrainedTokenizerFast(tokenizer_object=trained.backend_tokenizer, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder / "fast")
    return folder / "fast"


def tokenizer(folder: Path) -> Subject:
    """The vocabulary and rules of a tokenizer."""
    fast = fast_tokenizer(folder)
    file = fast / "tokenizer.json"

    def says() -> list[int]:
        return Tokenizer.from_file(str(file)).encode(WORDS).ids

    return Subject([file], lambda say: load_tokenizer(str(fast))(WORDS).input_ids, (DataError,), says)


def tokenizer_config(folder: Path) -> Subject:
    """Its configuration: it is what transformers makes of it."""
    fast = fast_tokenizer(folder)

    def says() -> list[int]:
        return AutoTokenizer.from_pretrained(fast)(WORDS).input_ids

    read = lambda say: load_tokenizer(str(fast))(WORDS).input_ids  # noqa: E731
    return Subject([fast / "tokenizer_config.json"], read, (DataError,), says)


def sentencepiece(folder: Path) -> Subject:
    """A sentencepiece model; whatever is read must be what sentencepiece itself reads."""
    from sentencepiece import SentencePieceProcessor

    (folder / "text.txt").write_text(f"{WORDS}\n" * 50)
    train_sentencepiece([folder / "text.txt"], folder / "trained", 300)
    file = folder / "trained/tokenizer.model"
    for other in (folder / "trained").iterdir():
        if other != file:
            other.unlink()

    def read(say: Say) -> Any:
        return load_tokenizer(str(file))(WORDS, add_special_tokens=False).input_ids

    return Subject([file], read, (DataError,), lambda: SentencePieceProcessor(model_file=str(file)).encode(WORDS))


def plain_model(folder: Path, **options: Any) -> Path:
    """Write a model of transformers."""
    torch.manual_seed(0)
    with torch.random.fork_rng():
        AutoModelForCausalLM.from_config(read_config(LLAMA)).save_pretrained(folder / "model", **options)
    return folder / "model"


def read_model(model: Path, what: Callable[[Any], Any]) -> Callable[[Say], Any]:
    """Return a function that reads a model as a run does: checks first, then the weights."""

    def read(say: Say) -> Any:
        config = read_config(str(model))
        check_backbone(config)
        for line in check_weights(str(model)):
            say(line)
        return what(build_model(str(model), dtype=torch.float32).model.eval())

    return read


def weights_of(model: Any) -> dict[str, bytes]:
    """Return a model's weights as bytes."""
    return {name: weight.detach().numpy().tobytes() for name, weight in model.named_parameters()}


def logits_of(model: Any) -> bytes:
    """Return a model's logits as bytes."""
    with torch.no_grad():
        return bytes(model(IDS).logits.numpy().tobytes())


def weights(folder: Path) -> Subject:
    """A file of weights, which says what they are."""
    model = plain_model(folder)
    file = model / "model.safetensors"

    def says() -> dict[str, bytes]:
        return {name: one.to(torch.float32).numpy().tobytes() for name, one in load_file(file).items()}

    return Subject([file], read_model(model, weights_of), (BackboneError,), says)


def index(folder: Path) -> Subject:
    """The index of sharded weights: they are the same, or missing."""
    model = plain_model(folder, max_shard_size="4KB")
    return Subject([model / "model.safetensors.index.json"], read_model(model, weights_of), (BackboneError,))


def config(folder: Path) -> Subject:
    """A model's configuration: it is what transformers makes of it."""
    model = plain_model(folder)

    def says() -> bytes:
        return logits_of(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval())

    return Subject([model / "config.json"], read_model(model, logits_of), (BackboneError,), says)


def converted(folder: Path) -> Subject:
    """A converted folder with its hashes: nothing in it changes the model without a word."""
    written = write_tiny(folder / "hf", LLAMA)
    files = [file for file in written.iterdir() if file.suffix in (".json", ".safetensors")]

    def read(say: Say) -> Any:
        with warnings_to(say), torch.no_grad():
            return hmt_ds.load_pretrained(written)(IDS).logits.numpy().tobytes()

    return Subject(sorted(files), read, (BackboneError,))


@contextmanager
def warnings_to(say: Say) -> Iterator[None]:
    """Pass this project's warnings to a function in the ``with`` block."""
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: say(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("hmt_ds")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def checkpoint(folder: Path) -> Subject:
    """Two checkpoints: of the newest any damage is noticed, and the one before is read."""
    write_checkpoint(folder, 4)
    newest = write_checkpoint(folder, 8)

    def read(say: Say) -> Any:
        state = newest_state(folder)
        assert state and state["step"] in (4, 8), state
        found = newest_intact(folder, say)
        assert found
        tensors = {}
        for name in read_manifest(found):
            if name.endswith(".safetensors"):
                with safe_open(found / name, framework="pt") as saved:
                    tensors |= {key: saved.get_tensor(key).numpy().tobytes() for key in saved.keys()}  # noqa: SIM118
        return found.name, read_run_state(found), tensors

    return Subject(sorted(newest.iterdir()), read, ())


def token_cache(folder: Path) -> Subject:
    """Cached tokens, their hash and the record of what they were made of: damage is made good."""
    subject, trained = jsonl(folder), folder / "trained"
    train_sentencepiece([subject.files[0]], trained, 300)
    loaded = load_tokenizer(str(trained))

    def read(say: Say) -> Any:
        found = read_tokens(str(subject.files[0]), loaded, format=TEXT, cache_dir=folder / "cache")
        return found.tokens[:], found.files, found.left_out

    read(print)
    return Subject(sorted(file for file in (folder / "cache").iterdir() if file.stat().st_size), read, (DataError,))


SUBJECTS: dict[str, Callable[[Path], Subject]] = {
    "jsonl": jsonl,
    "parquet": parquet_file,
    "tokenizer": tokenizer,
    "tokenizer_config": tokenizer_config,
    "sentencepiece": sentencepiece,
    "weights": weights,
    "index": index,
    "config": config,
    "converted": converted,
    "checkpoint": checkpoint,
    "token_cache": token_cache,
}
