"""Files of an evaluation: results as JSON, and the losses of each document as .npz."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from hmt_ds.config.config_error import ConfigError
from hmt_ds.evaluation.figures import Figures, Row, figures_of
from hmt_ds.evaluation.losses import DocumentLosses

OWN = re.compile(r"step_(\d+)\.json")  # of other data, the name has a hash as well


@dataclass(frozen=True)
class HeldOutData:
    """Description of the held-out documents that an evaluation has read.

    Attributes:
        source: file, folder or data set of the documents.
        sha256: SHA-256 of the token ids, in hexadecimal.
        documents, tokens: number of documents, and of their tokens.
        tokenizer: the tokenizer's number of tokens and a hash of its vocabulary.
    """

    source: str
    sha256: str
    documents: int
    tokens: int
    tokenizer: str


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of a model on held-out documents.

    Attributes:
        step: optimizer step of the model's weights.
        data: the documents.
        segments_read: lower bounds of the printed table's rows, as numbers of segments read before a token.
        losses: losses of each document.
    """

    step: int
    data: HeldOutData
    segments_read: Sequence[int]
    losses: DocumentLosses

    @cached_property
    def figures(self) -> Figures:
        """Mean losses with 95% intervals, and a sentence on whether the memory helps, computed from each document's
        losses.
        """
        return figures_of(self.losses, self.segments_read)


def evaluation_file(folder: Path, step: int, sha256: str, *, own: bool, prefix: str = "") -> Path:
    """Return the path of an evaluation's JSON file.

    It is ``step_000100.json``, or for documents other than the run's own ``step_000100_1a2b3c4d.json``.

    Args:
        folder: folder of the run's evaluations.
        step: optimizer step of the model's weights.
        sha256: SHA-256 of the data, in hexadecimal.
        own: whether the data are the run's own validation documents.
        prefix: text in front of the name, such as ``retrieval_``.
    """
    file = folder / f"{prefix}step_{step:06d}.json"
    there = sha256_of(file)
    is_same = own if there is None else there == sha256
    return file if is_same else file.with_stem(f"{file.stem}_{sha256[:8]}")


def sha256_of(file: Path) -> str | None:
    """Return the SHA-256 (hexadecimal) of an evaluation's data, read from its JSON file; None if it is missing."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))["data"]["sha256"]
    except (OSError, ValueError, KeyError):
        return None


def write_evaluation(evaluation: Evaluation, file: Path) -> None:
    """Write an evaluation as JSON and as .npz; each file appears only when it is complete.

    Args:
        evaluation: the evaluation.
        file: path of the JSON file; the .npz file is beside it.

    Raises:
        OSError: the files cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(".part")
    with aside.open("wb") as arrays:
        losses, names = evaluation.losses, list(evaluation.losses.losses)
        np.savez_compressed(
            arrays,
            readings=np.array(names),
            losses=np.stack([losses.losses[name] for name in names]),
            tokens=np.stack([losses.tokens[name] for name in names]),
            segment_length=losses.segment_length,
        )
    aside.replace(file.with_suffix(".npz"))
    figures = evaluation.figures
    content = {
        "step": evaluation.step,
        "data": asdict(evaluation.data),
        "segment_length": evaluation.losses.segment_length,
        "segments_read": list(evaluation.segments_read),
        "verdict": figures.verdict,
        "rows": [as_json(row, "segments_read") for row in figures.rows],
        "positions": [as_json(row, "position") for row in figures.positions],
        "remembered": as_json(figures.remembered, "segments_read"),
    }
    aside.write_text(json.dumps(content, indent=1))
    aside.replace(file)


def own_evaluations(run: Path, prefix: str = "") -> dict[int, Path]:
    """Return the JSON files of a run's evaluations on its own validation documents, by optimizer step.

    Args:
        run: folder of a run.
        prefix: text in front of the files' names: empty for losses, ``retrieval_`` for answers.
    """
    files = (run / "evaluation").glob(f"{prefix}*.json")
    return {int(name[1]): file for file in files if (name := OWN.fullmatch(file.name.removeprefix(prefix)))}


def find_evaluation(run: Path) -> Path:
    """Return the JSON file of a run's newest evaluation on its own validation documents.

    Args:
        run: folder of a run, or the JSON file of an evaluation, which is returned unchanged.

    Raises:
        ConfigError: there is no run or no evaluation.
    """
    if run.is_file():
        return run
    if not run.is_dir():
        raise ConfigError([f"{run}: no such run: name the folder of a run (training.output)"])
    if not (files := own_evaluations(run)):
        raise ConfigError([f"{run}: has no evaluation; make one with hmt-ds evaluate {run}"])
    return files[max(files)]


def read_evaluation(file: Path) -> Evaluation:
    """Read an evaluation from the JSON and .npz files that :func:`write_evaluation` wrote.

    Args:
        file: path of the JSON file.

    Raises:
        ConfigError: the file is no evaluation, or the .npz file with each document's losses is missing.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        data = HeldOutData(**content["data"])
        with np.load(file.with_suffix(".npz")) as arrays:
            names = [str(name) for name in arrays["readings"]]
            losses = dict(zip(names, arrays["losses"], strict=True))
            tokens = dict(zip(names, arrays["tokens"], strict=True))
            found = DocumentLosses(int(arrays["segment_length"]), losses, tokens)
        return Evaluation(content["step"], data, content["segments_read"], found)
    except (OSError, ValueError, KeyError, TypeError, BadZipFile) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(
            [f"{file}: no evaluation with the losses of each document ({reason}): evaluate again with hmt-ds evaluate"]
        ) from None


def as_json(row: Row, first: str) -> dict[str, object]:
    """Convert a row of results to JSON values; a value with an interval becomes a list of mean, low and high end.

    Args:
        row: the row.
        first: JSON key of the row's lower bound: ``segments_read`` or ``position``.
    """
    return {
        first: row.first,
        "below": row.below,
        "tokens": row.tokens,
        "perplexity": finite(row.perplexity),
        "nats": [finite(value) for value in row.nats],
        **{f"cost_{name}": [finite(value) for value in cost] for name, cost in row.costs.items()},
    }


def finite(value: float) -> float | None:
    """Return a number unchanged; None for nan and inf, which JSON cannot express.

    Args:
        value: the number.
    """
    return value if math.isfinite(value) else None
