"""Every `hmt-ds` command in a README is one: its command, options and recipe keys exist."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from hmt_ds import cli
from hmt_ds.config.recipe import Recipe
from hmt_ds.config.sections import keys

ROOT = Path(__file__).parents[2]
TOPS = ("hmt_ds", "launch", "ds_configs", "tests")
READMES = [ROOT / "README.md", *(file for top in TOPS for file in sorted((ROOT / top).rglob("README.md")))]
FREE = ("model.source.", "optimizer.params.", "schedule.params.", "generation.")  # keys of other libraries below these
KEYS = {name for name, _ in keys(Recipe)}
# a placeholder in capitals can have any value; each of the words below, a valid one
VALUES = {"N": "2", "STEPS": "2"}


def commands_of(readme: Path) -> Iterator[tuple[str, bool]]:
    """Yield the commands in code blocks, and in code within the text, which may leave out arguments."""
    text = readme.read_text().replace("\\\n", " ")
    for line in re.findall(r"^    (?:\$ )?((?:\w+=\S+ )*(?:hmt-ds|python -m hmt_ds) .*)$", text, re.MULTILINE):
        yield from ((part, True) for part in re.split(r"\s+#\s|;\s", line) if re.search("hmt[-_]ds ", part))
    for code in re.findall(r"`([^`]+)`", text):
        code = " ".join(code.split())
        if code.startswith("hmt-ds ") and "|" not in code:
            yield code, False


def words_of(command: str) -> list[str]:
    """Return a command's arguments; what is optional or repeated is left out."""
    words = [word for word in shlex.split(command.replace("...", "")) if word]
    start = next(n for n, word in enumerate(words) if word in ("hmt-ds", "hmt_ds"))
    return [VALUES.get(word, word) for word in words[start + 1 :]]


def problem_of(words: list[str], whole: bool, capsys) -> str | None:
    """Return what is wrong with a command; None for a good one.

    Args:
        words: its arguments.
        whole: whether nothing may be left out.
        capsys: pytest's fixture.
    """
    parser = cli.command_line()
    commands = next(action for action in parser._actions if action.dest == "command").choices
    if not words or words[0] not in commands:
        return None if words and words[0] == "--version" else "no such command"
    try:
        _, overrides = parser.parse_known_args(words)
    except SystemExit:
        error = capsys.readouterr().err.strip().splitlines()[-1]
        incomplete = re.search("arguments are required|expected (one|at least one) argument", error)
        return None if incomplete and not whole else error
    unknown = [word.partition("=")[0].removeprefix("--") for word in overrides if word.startswith("--")]
    wrong = [key for key in unknown if key not in KEYS and not key.startswith(FREE)]
    return f"unknown {wrong}" if wrong else None


@pytest.mark.parametrize("readme", READMES, ids=lambda file: str(file.relative_to(ROOT)))
def test_commands_are_valid(readme, capsys):
    found = {command: problem_of(words_of(command), whole, capsys) for command, whole in commands_of(readme)}
    assert {command: problem for command, problem in found.items() if problem} == {}


def test_every_argument_of_every_command_has_a_help_text():
    """Those that a command's options inherit too, such as --ranks of train and --dtype of generate."""
    (commands,) = cli.command_line()._subparsers._group_actions  # type: ignore[union-attr]
    found = {(name, one.dest): one.help for name, command in commands.choices.items() for one in command._actions}  # type: ignore[union-attr]
    assert len(found) > 90 and [argument for argument, text in found.items() if not text] == []


def test_there_is_enough_to_check():
    assert sum(len(list(commands_of(readme))) for readme in READMES) > 50


@pytest.mark.parametrize(
    ("command", "wrong"),
    [
        ("hmt-ds train RECIPE --memory.segment_length 5", False),
        ("hmt-ds trane RECIPE", True),
        ("hmt-ds train RECIPE --memory.segment_lenght 5", True),
        ("hmt-ds plan --schedule --stage 3 --foo", True),
        ("hmt-ds status", True),
    ],
)
def test_what_is_wrong_is_found(command, wrong, capsys):
    assert bool(problem_of(words_of(command), True, capsys)) == wrong
