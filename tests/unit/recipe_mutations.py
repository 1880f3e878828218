"""Seeded mutations of a recipe, half of them aware of its structure: wrong types, misspelt keys, absurd numbers, nulls.

``python tests/unit/recipe_mutations.py 2000`` checks as many, and prints those that end in anything but words.
"""

import contextlib
import copy
import io
import os
import random
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from bad_folder import errors_in, make_folder

from hmt_ds import cli
from hmt_ds.config.recipe import Recipe
from hmt_ds.config.sections import keys

SECONDS = 60  # for one check, with other work beside it
LONG = "x" * 5000
VALUES: list[Any] = [None, True, False, 0, -1, 1, 2, 3, 0.5, -0.5, 1e-30, 1e30, 10**9, 2**31, 2**63, 10**40, -(10**40)]
VALUES += [float("nan"), float("inf"), -float("inf"), "", " ", "auto", "3", "no", LONG, "a\nb", "a\0b", "é\u202e"]
VALUES += ["~", "$HOME", "/", "/dev/null", "/proc/self/mem", "..", "text.txt", "recipe.yaml", "tokenizer", "[", "{}"]
VALUES += [[], [1], [[]], [None], [-1, 2], ["a"] * 40, {}, {"a": 1}, {0: 2}, {0: 1, 5: 2}, {-1: 0}, {"": {}}, {None: 1}]
LEAVES = [key for key, _ in keys(Recipe)]
Values = dict[str, Any]


def places(values: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The keys of all values in nested mappings."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield (*above, key)
            yield from places(value, (*above, key))


def parent(values: Values, place: tuple[str, ...]) -> Values:
    """The mapping that holds a place; mappings that are missing are made."""
    for key in place[:-1]:
        if not isinstance(values.get(key), dict):
            values[key] = {}
        values = values[key]
    return values


def set_key(values: Values, chance: random.Random) -> None:
    """Give any key of the schema any value."""
    place = tuple(chance.choice(LEAVES).split("."))
    parent(values, place)[place[-1]] = copy.deepcopy(chance.choice(VALUES))


def set_value(values: Values, chance: random.Random) -> None:
    """Give a key that the recipe has another value."""
    place = chance.choice(list(places(values)))
    parent(values, place)[place[-1]] = copy.deepcopy(chance.choice(VALUES))


def misspell(values: Values, chance: random.Random) -> None:
    """Change a letter of a key, or move it into another section."""
    place = chance.choice(list(places(values)))
    value = parent(values, place).pop(place[-1])
    old = str(place[-1])
    at = chance.randrange(len(old) + 1)
    name = old[:at] + chance.choice("aX_.- \t") + old[at + chance.randrange(2) :]
    parent(values, (*chance.choice([place[:-1], ("memory",), ()]), name))[name] = value


def drop(values: Values, chance: random.Random) -> None:
    """Remove a key or a section."""
    place = chance.choice(list(places(values)))
    parent(values, place).pop(place[-1])


def set_model(values: Values, chance: random.Random) -> None:
    """Give the backbone's configuration another value, alone: it passes the schema, and the checks behind it see it."""
    values["model"]["source"][chance.choice([*values["model"]["source"], *OF_CONFIG])] = chance.choice(VALUES)


OF_CONFIG = ["hidden_act", "rope_parameters", "pad_token_id", "tie_word_embeddings", "num_key_value_heads", "head_dim"]
OF_CONFIG += ["rms_norm_eps", "attention_dropout", "torch_dtype", "dtype", "initializer_range", "architectures"]
STRUCTURED: list[Callable[[Values, random.Random], None]] = [set_key, set_key, set_value, set_value, misspell, drop]


def mutate_text(text: str, chance: random.Random) -> str:
    """Change a recipe's text without regard to what it says: characters, lines given twice, indentation."""
    lines = text.splitlines(keepends=True)
    at = chance.randrange(len(lines))
    kind = chance.randrange(5)
    if kind == 0:
        lines.insert(chance.randrange(len(lines)), lines[at])
    elif kind == 1:
        lines[at] = chance.choice(["  ", "\t", " "]) + lines[at]
    elif kind == 2:
        lines[at] = lines[at].replace(":", chance.choice(["", "::", ": &a", ": *a", ": !!python/object:os.system"]), 1)
    elif kind == 3:
        lines[at:] = lines[at : at + 1] * chance.choice([1, 50])
    text = "".join(lines)
    place = chance.randrange(len(text))
    put = chance.choice(
        ["\0", "\x07", "\ufeff", "'", '"', "{", "]", "#", "|", "%", "0x1F", "1:30", "010", "é", "", "1" * 5000]
    )
    return text[:place] + put + text[place + chance.randrange(3) :]


def mutations(recipe: Path, seed: int) -> Iterator[str]:
    """Mutated texts of a recipe, without end."""
    chance, text = random.Random(seed), recipe.read_text()
    while True:
        if chance.random() < 0.5:
            yield mutate_text(text, chance)
            continue
        values = yaml.safe_load(text)
        if chance.random() < 0.3:
            set_model(values, chance)
        for _ in range(chance.choice([0, 1, 1, 2, 3])):
            if values:
                chance.choice(STRUCTURED)(values, chance)
        yield yaml.safe_dump(values, allow_unicode=True)


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in a ``with`` block that takes too long."""

    def too_slow(*_: object) -> None:
        raise TimeoutError(f"more than {seconds} s")

    signal.signal(signal.SIGALRM, too_slow)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def run_check(recipe: Path) -> tuple[Any, str]:
    """`hmt-ds check` a recipe in this process; return its exit code and what it says on stderr."""
    err, code = io.StringIO(), None
    sys.argv = ["hmt-ds", "check", str(recipe)]
    try:
        with time_limit(SECONDS), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as ended:
        code = ended.code
    return code, err.getvalue()


def check(recipe: Path) -> str | None:
    """`hmt-ds check` a recipe; what is wrong with how it ends, or None."""
    try:
        code, said = run_check(recipe)
    except BaseException:  # any other end is what is looked for
        return traceback.format_exc()
    lines = errors_in(said)
    others = [line for line in said.splitlines() if line and not line.startswith(("error: ", "warning: "))]
    if (code == 0) != (not lines) or code not in (0, 2) or others:
        return f"exit code {code}: {said[:3000]}"
    return None


def main(count: int, seed: int = 0) -> None:
    """Check ``count`` mutations, and print what is wrong with each of those that fail."""
    folder = Path(tempfile.mkdtemp())
    os.chdir(folder)
    make_folder(folder)
    recipe, ends = Path("mutated.yaml"), dict[str, int]()
    for number, text in zip(range(count), mutations(Path("recipe.yaml"), seed), strict=False):
        recipe.write_text(text)
        if problem := check(recipe):
            kind = problem.strip().splitlines()[-1][:100]
            ends[kind] = ends.get(kind, 0) + 1
            if ends[kind] == 1:
                print(f"--- {number}\n{text}\n{problem}".replace(LONG, "xx"), flush=True)
    print(count, "checked;", sum(ends.values()), "failed", *ends.items(), sep="\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), int((sys.argv[2:] or ["0"])[0]))
