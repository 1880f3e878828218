"""READMEs name what exists: every file of a folder, and links to files, headings and definitions that are there."""

import ast
import re
from pathlib import Path

import pytest
from test_imports import ROOMS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "hmt_ds"
FOLDERS = sorted({file.parent for file in PACKAGE.rglob("*.py")})
TOPS = [ROOT / name for name in ("hmt_ds", "launch", "ds_configs", "tests")]
READMES = [ROOT / "README.md", *(readme for top in TOPS for readme in sorted(top.rglob("README.md")))]
SOURCES = [ROOT / "setup.py", *(file for top in TOPS for file in top.rglob("*.py"))]
LINK = re.compile(r"\[([^\]]+)\]\(([^)#]*)(?:#([^)]+))?\)")
PYTHON_FILE = re.compile(r"`([\w./*]+\.py)`")


def name_of(path: Path) -> str:
    """A test's id."""
    return str(path.relative_to(ROOT))


def links(readme: Path) -> list[tuple[str, Path, str | None]]:
    """Text, target and anchor of every link within the project."""
    found = LINK.findall(readme.read_text())
    return [(text, (readme.parent / to).resolve() if to else readme, at) for text, to, at in found if "://" not in to]


def anchors(readme: Path) -> set[str]:
    """The headings of a README, as links name them."""
    headings = re.findall(r"^#+ (.*)$", readme.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def defined(source: str) -> set[str]:
    """Names that a module defines at its top, and the methods of its classes as ``Class.method``."""
    names = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return names


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_a_readme_names_every_file_and_folder(folder):
    text = (folder / "README.md").read_text()
    names = {file.name for file in folder.glob("*.py")} - {"__init__.py"}
    names |= {f"{inner.name}/" for inner in FOLDERS if inner.parent == folder}
    assert sorted(name for name in names if name not in text) == []


@pytest.mark.parametrize("readme", READMES, ids=name_of)
def test_python_files_exist(readme):
    """A Python file is named by its path from the README, or by the end of its path."""
    names = [name for name in PYTHON_FILE.findall(readme.read_text()) if not (readme.parent / name).exists()]
    assert [name for name in names if not any(file.match(name) for file in SOURCES)] == []


@pytest.mark.parametrize("readme", READMES, ids=name_of)
def test_links_lead_somewhere(readme):
    for text, target, anchor in links(readme):
        assert target.exists(), (text, target)
        page = target / "README.md" if target.is_dir() else target
        assert not anchor or anchor in anchors(page), (text, anchor, sorted(anchors(page)))


@pytest.mark.parametrize("readme", READMES, ids=name_of)
def test_linked_names_are_defined_in_their_files(readme):
    """``[`name`](file.py)`` is a definition in that file."""
    code = [(text.strip("`"), file) for text, file, _ in links(readme) if file.suffix == ".py" and "/" not in text]
    assert [(name, file.name) for name, file in code if name not in defined(file.read_text())] == []


def test_the_code_map_has_enough_to_check():
    """It names definitions in the way that is checked."""
    assert len([file for _, file, _ in links(PACKAGE / "README.md") if file.suffix == ".py"]) > 50


def test_the_code_map_has_the_rooms_in_the_order_of_imports():
    rooms: list[set[str]] = [set() for _ in ROOMS]
    for level, cell in re.findall(r"^\| (\d+) \| (.*?) \| ", (PACKAGE / "README.md").read_text(), re.MULTILINE):
        rooms[int(level) - 1] |= set(re.findall(r"`(\w+)(?:/|\.py)`", cell))
    assert rooms == ROOMS


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("A = 1\nb: int = 2", {"A", "b"}),
        ("class C:\n    def m(self): pass\n\ndef f():\n    def inner(): pass", {"C", "C.m", "f"}),
    ],
)
def test_definitions_are_found(source, expected):
    assert defined(source) == expected
