"""The rooms that each room may import, checked in the source, so that lazy imports count too."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "hmt_ds"
# from the bottom up: a room may import those of the lines above its own, and itself
ROOMS = [
    {"memory", "distributed", "reporting"},
    {"config"},
    {"data", "backbones"},
    {"parallel"},
    {"evaluation", "inference", "checkpoint", "planning"},
    {"preflight", "conversion", "overview"},
    {"training", "generation"},
    {"benchmark", "preview", "tasks"},
    {"launch"},
    {"train", "evaluate", "generate", "bench", "cli"},  # what is started by name
    {"__main__"},
]
DEEPSPEED = {"distributed", "parallel", "checkpoint", "conversion"}


def part_of(file: Path) -> str:
    """The folder or the module that a file is."""
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(source: str) -> Iterator[str]:
    """Dotted names of everything that a file imports, also within functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide what this test looks for"
            # ``from hmt_ds import cli`` imports a module, ``from hmt_ds.cli import main`` a name in one
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def edges(package: str) -> list[tuple[str, str, str]]:
    """(part, what of ``package`` it imports, file), over the whole source."""
    found = []
    for file in sorted(ROOT.rglob("*.py")):
        for name in imports(file.read_text()):
            top, _, rest = name.partition(".")
            if top == package:
                found.append((part_of(file), rest.split(".")[0], str(file.relative_to(ROOT))))
    return found


def allowed(part: str) -> set[str]:
    """The parts of hmt_ds that a part may import."""
    level = next(n for n, rooms in enumerate(ROOMS) if part in rooms)
    return {"__version__", "lazy_imports", part}.union(*ROOMS[:level])


def settings_imported(file: str, to: str) -> bool:
    """Whether the configuration imports nothing of a room above it but the dataclass of its settings."""
    names = [name for name in imports((ROOT / file).read_text()) if name.startswith(f"hmt_ds.{to}.")]
    return file in ("config/recipe.py", "config/data_section.py") and all(
        name.startswith(f"hmt_ds.{to}.settings.") for name in names
    )


def test_edges():
    """Imports point one way."""
    upwards = {(file, to) for part, to, file in edges("hmt_ds") if part != "__init__" and to not in allowed(part)}
    assert {edge for edge in upwards if not settings_imported(*edge)} == set()


def test_every_part_has_its_place():
    """A new folder or module is put into the table above."""
    parts = {part_of(file) for file in ROOT.rglob("*.py")} - {"__init__"}
    assert parts == set().union(*ROOMS)


def test_memory_imports_torch_alone():
    for file in (ROOT / "memory").glob("*.py"):
        tops = {name.split(".")[0] for name in imports(file.read_text())}
        assert tops <= {"torch", "hmt_ds", *sys.stdlib_module_names}, file.name


def test_deepspeed_stays_in_its_place():
    assert {(file, part) for part, _, file in edges("deepspeed") if part not in DEEPSPEED} == set()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import deepspeed.comm as c", ["deepspeed.comm"]),
        ("from hmt_ds import cli", ["hmt_ds.cli"]),
        ("def f():\n    from hmt_ds.cli import a, b", ["hmt_ds.cli.a", "hmt_ds.cli.b"]),
    ],
)
def test_imports_are_found(source, expected):
    assert list(imports(source)) == expected
