"""Read the needed fields of JSON where `datasets` cannot: other fields may come late, or change their kind."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value

from hmt_ds.data.errors import DataError
from hmt_ds.data.unpack import unpacked


def read_json(files: Sequence[Path], fields: Sequence[str], *, is_text: bool) -> Dataset:
    """Return some fields of the rows of JSON files, read a line at a time; a field that a row lacks is None.

    `datasets` takes the kinds of all fields from the first 10 MB, and refuses what differs from them later.

    Args:
        files: The files, perhaps compressed.
        fields: The fields.
        is_text: Whether the one field must hold text.

    Raises:
        DataError: A row has no fields, or no text where there must be one; with file and line.
        Exception: What `datasets` raises for rows that differ in the given fields, and for a file that is no JSON.
    """
    states = [(state.st_size, state.st_ctime_ns) for state in map(Path.stat, files)]
    known = repr([[str(file.resolve()) for file in files], states, fields, is_text])
    failed: list[DataError] = []

    def generate() -> Iterator[dict[str, Any]]:
        for file in files:
            for number, row in json_rows(unpacked(file)):
                if reason := _why_wrong(row, fields, is_text):
                    failed.append(DataError(f"{file}, line {number:,}: {reason}"))
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
    """Yield the rows of JSON Lines with their line numbers; or of a JSON list, which is read at once, with theirs.

    Raises:
        ValueError: The file is neither, or not UTF-8.
    """
    with file.open(encoding="utf-8-sig") as lines:
        first = next((line for line in lines if line.strip()), "")
    if _is_row(first):
        with file.open(encoding="utf-8-sig") as lines:
            yield from ((number, parse(line)) for number, line in enumerate(lines, 1) if line.strip())
        return
    whole = json.loads(file.read_text(encoding="utf-8-sig"))
    yield from enumerate(whole if isinstance(whole, list) else [whole], 1)


def parse(text: str) -> Any:
    """Return a value of JSON.

    Raises:
        ValueError: The text is no JSON, or what the reader of rows refuses: a name twice, half of a surrogate pair.
    """
    value = json.loads(text.removeprefix("\ufeff"), object_pairs_hook=_once)
    json.dumps(value, ensure_ascii=False).encode()  # fails for half of a surrogate pair
    return value


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return an object of JSON; one that has a name twice is refused, as by the reader of rows."""
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError(f"a name is there twice: {', '.join(name for name, _ in pairs)}")
    return found


def _is_row(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _why_wrong(row: Any, fields: Sequence[str], is_text: bool) -> str | None:
    """Return why a row cannot be used; None if it can."""
    if not isinstance(row, dict):
        return f"holds {type(row).__name__}, and no object with fields"
    if is_text and not isinstance(value := row.get(fields[0]), str | None):
        return f"{fields[0]!r} holds {type(value).__name__}, not text"
    return None
