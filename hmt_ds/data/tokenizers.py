"""Load a Hugging Face or sentencepiece tokenizer, and check it against a model's vocabulary."""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto, TrainerSpec
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hmt_ds.data.errors import DataError, first_line

FILES = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json")  # any of them makes a tokenizer of a folder

# Blanks, line ends, bytes outside the vocabulary and letters that Unicode normalisation would change. It does not
# begin with a blank: there alone LlamaTokenizer differs from sentencepiece (one "▁" less), for every model.
PROBE = "Two  spaces,\n\n\ta tab, trailing blanks  \n Émile ½ ﬁ 你好 🙂"


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer without running code that comes with it.

    Args:
        path: A Hugging Face tokenizer folder, a sentencepiece BPE model (a `.model` file, or a folder whose only
            tokenizer file is `tokenizer.model`), or a name on the hub.

    Raises:
        DataError: `path` has no tokenizer, it cannot be read, or `transformers` would not give sentencepiece's ids for
            it.
    """
    local = Path(path)
    if local.is_file():
        return _load_sentencepiece(local)
    model = local / "tokenizer.model"
    if model.is_file() and not (local / "tokenizer.json").exists() and not (local / "tokenizer_config.json").exists():
        return _load_sentencepiece(model)
    if not local.is_dir():
        _check_hub_name(path)
    tokenizer = _load_hugging_face(path)
    if model.is_file() and not (local / "tokenizer.json").exists():
        _give_same_ids(tokenizer, model)
    return tokenizer


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Check that every token id of a tokenizer is within a model's vocabulary.

    Args:
        tokenizer: The tokenizer.
        vocab_size: Number of token embeddings of the model.

    Raises:
        DataError: The tokenizer's largest id is not below `vocab_size`.
    """
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocab_size:
        raise DataError(
            f"the tokenizer's ids go up to {largest}, but the model's vocabulary has {vocab_size} ids "
            f"(0 to {vocab_size - 1}): use the model's own tokenizer, or a model with at least {largest + 1}"
        )


def describe_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a phrase with a tokenizer's number of tokens and the first 12 hexadecimal digits of its vocabulary's
    SHA-256."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    return f"{len(tokenizer):,} tokens, vocabulary {hashlib.sha256(vocabulary.encode()).hexdigest()[:12]}"


def _load_hugging_face(path: str) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        tokenizer(PROBE)  # some damage shows only here
        return tokenizer
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # damage shows wherever it is used, also as a panic of Rust, which is no Exception
        reason, cure = first_line(error), "name a tokenizer's folder or a name on the hub"
        if not Path(path).exists() and "connect" in reason:
            reason = "no such folder here, and the hub cannot be reached"
            cure = "name a folder, make one with hmt-ds tokenizer, or load it once where the hub can be reached"
        raise DataError(f"cannot load a tokenizer from {path!r}: {reason}; {cure}") from error


def _load_sentencepiece(model: Path) -> PreTrainedTokenizerBase:
    """Load a sentencepiece model by way of a temporary folder with the configuration that `transformers` needs.

    Raises:
        DataError: It is not a BPE model, or `transformers` gives other ids than sentencepiece.
    """
    _read_processor(model)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(model, Path(folder) / "tokenizer.model")
        write_config(Path(folder))
        tokenizer = _load_hugging_face(folder)
    tokenizer.name_or_path = str(model)  # not the temporary folder
    _give_same_ids(tokenizer, model)
    return tokenizer


def write_config(folder: Path) -> None:
    """Write `tokenizer_config.json` beside a sentencepiece file `tokenizer.model`: it tells `transformers` the
    tokenizer's class and special tokens.

    Without it there is no BOS, or a wrong first token.

    Args:
        folder: Folder of `tokenizer.model`.
    """
    processor = _read_processor(folder / "tokenizer.model")
    config: dict[str, Any] = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}
    for role in ("unk", "bos", "eos"):
        piece = getattr(processor, f"{role}_id")()
        config[f"{role}_token"] = processor.id_to_piece(piece) if piece >= 0 else None
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _read_processor(model: Path) -> SentencePieceProcessor:
    try:
        processor = SentencePieceProcessor(model_file=str(model))
    except (RuntimeError, OSError, ValueError) as error:  # ValueError: pieces that are not UTF-8
        raise DataError(
            f"{model} is not a sentencepiece model ({first_line(error)}): name one, or a Hugging Face tokenizer's "
            "folder"
        ) from error
    if ModelProto.FromString(processor.serialized_model_proto()).trainer_spec.model_type != TrainerSpec.BPE:
        raise DataError(
            f"{model} is not a BPE model, and transformers would give wrong ids for it: "
            "convert it to a Hugging Face tokenizer (tokenizer.json) and name that folder"
        )
    return processor


def _give_same_ids(tokenizer: PreTrainedTokenizerBase, model: Path) -> None:
    """Check that a tokenizer that `transformers` made of a sentencepiece model gives its ids; order its merges if not.

    `transformers` merges pieces in the order of their ids. In Mistral's models that is not the order of
    their scores, by which sentencepiece merges: runs of blanks have low ids and the lowest score.

    Raises:
        DataError: It gives other ids with ordered merges too.
    """
    processor = _read_processor(model)
    pieces = [processor.id_to_piece(n).strip("▁") for n in range(processor.vocab_size()) if _is_normal(processor, n)]
    text = PROBE + " ".join(pieces).replace("▁", " ")  # each piece: of a damaged one only its own words may differ
    theirs = processor.encode(text)

    def ids() -> list[int]:
        return list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    if ids() != theirs and _only_blanks_are_late(processor):
        _merge_by_score(tokenizer, processor)
    if (ours := ids()) != theirs or len(tokenizer) != processor.vocab_size():
        raise DataError(
            f"{model} normalises text or has special pieces that transformers does not follow "
            f"({len(ours)} ids where sentencepiece gives {len(theirs)}; {len(tokenizer)} and "
            f"{processor.vocab_size()} pieces): convert it to a Hugging Face tokenizer (tokenizer.json)"
        )


def _only_blanks_are_late(processor: SentencePieceProcessor) -> bool:
    """Return whether scores fall with ids, except those of runs of blanks; in a damaged file others may not."""
    pieces = [
        n for n in range(processor.vocab_size()) if _is_normal(processor, n) and processor.id_to_piece(n).strip("▁")
    ]
    scores = [processor.get_score(n) for n in pieces]
    return scores == sorted(scores, reverse=True)


def _merge_by_score(tokenizer: PreTrainedTokenizerBase, processor: SentencePieceProcessor) -> None:
    """Make a fast tokenizer merge pairs of pieces by the score of what they become, highest first.

    Args:
        tokenizer: The tokenizer to change.
        processor: The sentencepiece model that it was made of.
    """
    vocabulary = {processor.id_to_piece(n): n for n in range(processor.vocab_size())}
    normal = [piece for piece, n in vocabulary.items() if _is_normal(processor, n)]
    by_score = sorted(normal, key=lambda piece: -processor.get_score(vocabulary[piece]))
    pairs = ((piece[:at], piece[at:]) for piece in by_score for at in range(1, len(piece)))
    merges = [(left, right) for left, right in pairs if left in vocabulary and right in vocabulary]
    unknown = processor.id_to_piece(processor.unk_id())
    tokenizer.backend_tokenizer.model = BPE(
        vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True
    )


def _is_normal(processor: SentencePieceProcessor, piece: int) -> bool:
    """Return whether a piece stands for text."""
    return not any(
        f(piece) for f in (processor.is_control, processor.is_unknown, processor.is_unused, processor.is_byte)
    )


def _check_hub_name(path: str) -> None:
    try:
        validate_repo_id(path)
    except HFValidationError:
        raise DataError(
            f"tokenizer {path!r} is neither a file, a folder nor a possible name on the hub: check the path"
        ) from None
    if path.endswith(".model"):
        raise DataError(f"tokenizer {path!r}: there is no such file: check the path")
