"""Read selected fields of JSON files whose other fields change their type or first appear late."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value

from hmt_ds.data.errors import DataError
from hmt_ds.data.unpack import unpacked


def read_json(files: Sequence[Path], fields: Sequence[str], *, is_text: bool) -> Dataset:
    """Read some fields of the rows of JSON files, line by line; a field that a row lacks becomes None.

    The `datasets` library takes the types of all fields from the first 10 MB, and refuses rows that differ later.

    Args:
        files: JSON or JSON Lines files, also compressed (.gz, .zst).
        fields: Names of the fields.
        is_text: Whether there is a single field, which must hold text.

    Raises:
        DataError: A row is not an object, or its field must hold text and does not; with file and line.
        Exception: An error of the `datasets` library: rows differ in the given fields, or a file is not JSON.
    """
    states = [(state.st_size, state.st_ctime_ns) for state in map(Path.stat, files)]
    known = repr([[str(file.resolve()) for file in files], states, fields, is_text])
    failed: list[DataError] = []

    def generate() -> Iterator[dict[str, Any]]:
        for file in files:
            for number, row in json_rows(unpacked(file)):
                if reason := _why_wrong(row, fields, is_text):
                    failed.append(DataError(f"{file}, line {number:,}: {reason}; correct it"))
                    raise failed[0]
                yield {field: row.get(field) for field in fields}

    try:
        return Dataset.from_generator(
            generate,
            features=Features({fields[0]: Value("large_string")}) if is_text else None,
            fingerprint=hashlib.sha256(known.encode()).hexdigest()[:32],
        )
    except Exception:
        if failed:
            raise failed[0] from None
        raise


def json_rows(file: Path) -> Iterator[tuple[int, Any]]:
    """Yield the rows of a JSON file with their numbers from 1: line numbers of JSON Lines, or positions in a JSON list.

    Args:
        file: A JSON or JSON Lines file, also compressed.

    Raises:
        ValueError: The file is not JSON, or not UTF-8.
    """
    if has_lines(file):
        with file.open(encoding="utf-8-sig") as lines:
            yield from ((number, parse(line)) for number, line in enumerate(lines, 1) if line.strip())
        return
    whole = json.loads(file.read_text(encoding="utf-8-sig"))
    yield from enumerate(whole if isinstance(whole, list) else [whole], 1)


def has_lines(file: Path) -> bool:
    """Return whether a file is JSON Lines rather than one JSON value, judged by its first line."""
    with file.open(encoding="utf-8-sig") as lines:
        first = next((line for line in lines if line.strip()), "")
    try:
        return isinstance(json.loads(first), dict)
    except (RecursionError, ValueError):
        return False


def parse(text: str) -> Any:
    """Parse a line of JSON as strictly as the `datasets` library does.

    Raises:
        ValueError: The text is not JSON, is nested too deeply, has a name twice in an object, or has half of a
            surrogate pair in a string.
    """
    try:
        value = json.loads(text.removeprefix("\ufeff"), object_pairs_hook=_once)
        json.dumps(value, ensure_ascii=False).encode()  # fails for half of a surrogate pair
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Make a dict from the pairs of a JSON object; ValueError if a name occurs twice."""
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError(f"a name occurs twice in an object: {', '.join(name for name, _ in pairs)}")
    return found


def _why_wrong(row: Any, fields: Sequence[str], is_text: bool) -> str | None:
    """Return why a row of JSON cannot be used (not an object, or no text where `is_text`); None if it can."""
    if not isinstance(row, dict):
        return f"holds {type(row).__name__}, but must hold an object with fields"
    if is_text and not isinstance(value := row.get(fields[0]), str | None):
        return f"{fields[0]!r} holds {type(value).__name__}, but must hold text"
    return None
