"""Seeded mutations of the files that are read: each ends in the unchanged result, what the file now says, or one line.

``python tests/unit/file_mutations.py 2000 [SUBJECT ...]`` tries as many per subject, half of them aware of its
structure, and prints those that end in anything else. Each subject runs in a process of its own: a crash is seen too.
"""

import copy
import json
import random
import struct
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from file_subjects import SUBJECTS, Subject
from recipe_mutations import VALUES, time_limit

SECONDS = 60  # for reading one file, with other work beside it
SPLICES = [
    b"",
    b"\0",
    b"\xff",
    b"{",
    b"]",
    b'"',
    b",",
    b"\n",
    b"\r\n",
    b"9" * 400,
    b"[" * 3000,
    b"\xef\xbb\xbf",
    b"NaN",
]


def mutate_bytes(content: bytes, chance: random.Random) -> bytes:
    """Change a file without regard to what it says: flip a bit, cut it off, or replace a range."""
    start = chance.randrange(len(content))
    end = min(len(content), start + chance.choice([1, 2, 8, 64, 512]))
    kind = chance.randrange(6)
    if kind == 0:
        return content[:start] + bytes([content[start] ^ 1 << chance.randrange(8)]) + content[start + 1 :]
    if kind == 1:
        return content[:start]
    replaced = [b"", content[start:end] * 2, bytes(end - start), chance.choice(SPLICES)][kind - 2]
    return content[:start] + replaced + content[end:]


def mutate_value(values: Any, chance: random.Random) -> Any:
    """Change nested lists and mappings, in place: another value, another key, a place less or one more."""
    inner: list[Any] = list(values.values() if isinstance(values, dict) else values)
    deeper = [one for one in inner if isinstance(one, dict | list) and one]
    if deeper and chance.random() < 0.7:
        mutate_value(chance.choice(deeper), chance)
        return values
    kind = chance.randrange(5)
    if isinstance(values, dict):
        key = chance.choice(list(values))
        if kind == 0:
            del values[key]
        elif kind == 1:
            new = chance.choice(["", "x", f"{key}x", str(key).upper()])  # VALUES has numbers and None as keys
            values[new] = values.pop(key)
        elif kind == 2:
            values[key] = copy.deepcopy(values[chance.choice(list(values))])
        else:
            values[key] = near(values[key], chance)
        return values
    at = chance.randrange(len(values))
    values[at : at + 1] = [[], [values[at], copy.deepcopy(values[at])], [near(values[at], chance)]][min(kind, 2)]
    return values


def near(value: Any, chance: random.Random) -> Any:
    """Return another value: one nearby, which passes for right, or an absurd one."""
    if chance.random() < 0.5:
        if isinstance(value, bool):
            return not value
        if isinstance(value, int | float):
            return value + chance.choice([-1, 1, 8, -value, value])
        if isinstance(value, str) and value:
            at = chance.randrange(len(value))
            return value[:at] + chance.choice("aX0/.") + value[at + 1 :]
    return copy.deepcopy(chance.choice(VALUES))


def mutate_json(content: bytes, chance: random.Random) -> bytes:
    """Change one or two places of a JSON file."""
    values = json.loads(content)
    for _ in range(chance.choice([1, 1, 2])):
        if values:
            values = mutate_value(values, chance)
    return json.dumps(values).encode()


def mutate_line(content: bytes, chance: random.Random) -> bytes:
    """Change the JSON of one line."""
    lines = content.splitlines()
    at = chance.randrange(len(lines))
    lines[at] = mutate_json(lines[at], chance)
    return b"\n".join(lines) + b"\n"


def mutate_header(content: bytes, chance: random.Random) -> bytes:
    """Change the JSON header of a safetensors file, mostly with its right length."""
    (length,) = struct.unpack("<Q", content[:8])
    header = mutate_json(content[8 : 8 + length], chance)
    said = len(header) if chance.random() < 0.8 else chance.choice([0, length + 1, 2**40, 2**63])
    return struct.pack("<Q", said) + header + content[8 + length :]


def mutate_parquet(content: bytes, chance: random.Random) -> bytes:
    """Change the footer, which says where columns are and of what types."""
    (length,) = struct.unpack("<I", content[-8:-4])
    footer = len(content) - 8 - length
    if chance.random() < 0.2:
        return (
            content[:-8] + struct.pack("<I", chance.choice([0, 1, length - 1, length + 1, 2**31, 2**32 - 1])) + b"PAR1"
        )
    changed = mutate_bytes(content[footer:-8], chance)
    said = len(changed) if chance.random() < 0.8 else length
    return content[:footer] + changed + struct.pack("<I", said) + b"PAR1"


AWARE: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": mutate_json,
    ".jsonl": mutate_line,
    ".safetensors": mutate_header,
    ".parquet": mutate_parquet,
}


def mutate(file: Path, chance: random.Random) -> bytes:
    """Return a file's content with a mutation, in half of all cases one that is aware of its structure."""
    content, aware = file.read_bytes(), AWARE.get(file.suffix)
    while True:
        changed = aware(content, chance) if aware and chance.random() < 0.5 else mutate_bytes(content, chance)
        if changed != content:
            return changed


def outcome(subject: Subject, expected: Any) -> str:
    """Read a subject whose file was changed; return how it ends, beginning with `!` if it must not end so."""
    said: list[str] = []
    try:
        with time_limit(SECONDS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = subject.read(said.append)
    except subject.errors as error:
        return "one line" if "\n" not in str(error) and len(str(error)) < 2000 else f"! not one line: {error}"
    except BaseException:  # any other end is what is looked for, also a panic of Rust
        return f"! {traceback.format_exc()}"
    if found == expected:
        return "unchanged"
    if said:
        return "one line" if all("\n" not in line for line in said) else f"! not one line: {said}"
    if subject.says is not None:
        try:
            oracle = subject.says()
        except Exception as error:
            return f"! changed, and the file cannot be read: {type(error).__name__}: {error}; {str(found)[:500]}"
        if oracle == found:
            return "as the file says"
        return f"! changed: {str(found)[:800]} where the file says {str(oracle)[:800]}"
    return f"! changed: {str(found)[:1000]}"


def try_mutations(name: str, count: int, seed: int, folder: Path) -> tuple[Counter[str], list[str]]:
    """Mutate a subject's files ``count`` times; return how it ended, and a report of each bad end."""
    chance, ends, reports = random.Random(f"{name} {seed}"), Counter[str](), list[str]()
    subject = SUBJECTS[name](folder)
    expected = subject.read(lambda line: None)
    for number in range(count):
        file = chance.choice(subject.files)
        written = file.read_bytes()
        changed = mutate(file, chance)
        file.write_bytes(changed)
        end = outcome(subject, expected)
        file.write_bytes(written)
        ends[end if end[0] != "!" else "BAD"] += 1
        if end[0] == "!":
            at = next((n for n, (a, b) in enumerate(zip(written, changed, strict=False)) if a != b), len(changed))
            was, now = written[max(0, at - 40) : at + 60], changed[max(0, at - 40) : at + 60]
            reports.append(f"{name} {number}, {file.name} byte {at}: {was!r} -> {now!r}\n{end}")
    assert subject.read(lambda line: None) == expected
    return ends, reports


def main(words: list[str]) -> int:
    """Try mutations of the named subjects, of all by default; each in a process of its own."""
    count, names = int(words[0]), words[1:]
    if names[:1] == ["--here"]:
        with tempfile.TemporaryDirectory() as folder:
            ends, reports = try_mutations(names[1], count, 0, Path(folder))
        kinds: Counter[str] = Counter(report.strip().splitlines()[-1][:60] for report in reports)
        for kind, times in kinds.items():
            report = next(one for one in reports if one.strip().splitlines()[-1][:60] == kind)
            print(f"--- {times} times like\n{report}", flush=True)
        print(f"{names[1]}: {count} mutations: {dict(sorted(ends.items()))}", flush=True)
        return int(bool(reports))
    codes = []
    for name in names or SUBJECTS:
        codes.append(subprocess.run([sys.executable, __file__, str(count), "--here", name]).returncode)
        if codes[-1] not in (0, 1):
            print(f"{name}: the interpreter crashed, exit code {codes[-1]}", flush=True)
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
