"""Each setting is declared once, and settings are loaded without torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields
from importlib import import_module
from pathlib import Path

import pytest

import hmt_ds.memory
from hmt_ds.backbones.settings import LoraSettings
from hmt_ds.config.recipe import Compute, Lora, Memory, Recipe
from hmt_ds.config.sections import fields_of, keys
from hmt_ds.memory.settings import MemorySettings
from hmt_ds.parallel.settings import ComputeSettings

LAZY = ("config", "memory", "backbones", "data", "checkpoint")
PROJECT = Path(__file__).resolve().parents[2]
SECTIONS = {
    "memory": (Memory, MemorySettings),
    "model.lora": (Lora, LoraSettings),
    "compute": (Compute, ComputeSettings),
}
ROOMS = ("memory", "backbones", "parallel", "data")  # whose settings are sections of the recipe
SCHEMA = {"config/recipe.py", "config/data_section.py", *(f"{room}/settings.py" for room in ROOMS)}
OTHERS = {
    ("conversion/foreign.py", "ForeignLora", "alpha"),  # HMT-pytorch's default, which is not the recipe's
    # of a schedule that is drawn without a recipe
    *(("planning/plan_options.py", "ScheduleOptions", name) for name in ("stages", "mode")),
    # of a layout that the planner tries, and of a new recipe
    *(("planning/layout.py", "Layout", name) for name in ("stages", "micro_batches", "recompute", "cuda_graphs")),
    ("launch/init_options.py", "InitOptions", "train"),
    ("launch/make_tokenizer.py", "TokenizerOptions", "text_field"),  # of sources without a recipe
    *(("data/formats.py", "Format", name) for name in ("name", "prompt_weight")),  # plain text, without a recipe
    # of what a command draws itself, whatever the run's seed was
    ("generation/options.py", "ChatOptions", "seed"),
    *(("tasks/options.py", name, "seed") for name in ("TaskOptions", "WriteOptions")),
    ("tasks/options.py", "TaskOptions", "tasks"),  # of a model that may be no run
}


def declared(file: Path) -> Iterator[tuple[str, str]]:
    """Yield (class, attribute) of every annotated attribute with a default other than None."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ClassDef):
            for line in node.body:
                if isinstance(line, ast.AnnAssign) and line.value and ast.unparse(line.value) != "None":
                    yield node.name, ast.unparse(line.target)


def test_no_setting_is_declared_twice():
    """Only the schema has classes that declare a default for a key of the recipe."""
    files = {str(file.relative_to(PROJECT / "hmt_ds")): file for file in (PROJECT / "hmt_ds").rglob("*.py")}
    leaves = [(name.split(".")[-1], field) for name, field in keys(Recipe) if not fields_of(field.annotation)]
    defaults = {name for name, field in leaves if not field.is_required() and field.default is not None}
    again = {(file, *pair) for file in files.keys() - SCHEMA for pair in declared(files[file]) if pair[1] in defaults}
    assert again == OTHERS
    sections = {name: set(declared(files[name])) for name in SCHEMA}
    assert {"Memory", "Lora", "Compute", "Retrieval"}.isdisjoint(kind for kind, _ in sections["config/recipe.py"])
    assert all(len(found) > 3 for found in sections.values())


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_has_the_fields_of_its_settings(name):
    """Names, defaults and help texts, in their order."""
    section, settings = SECTIONS[name]
    listed = [(key.rpartition(".")[2], field) for key, field in keys(Recipe) if key.rpartition(".")[0] == name]
    assert [key for key, _ in listed] == [field.name for field in fields(settings)]
    for (_, field), origin in zip(listed, fields(settings), strict=True):
        assert field.is_required() if origin.default is MISSING else field.default == origin.default
        assert field.description
    assert issubclass(section, settings)


@pytest.mark.parametrize("module", ["config.load", "config.recipe", "memory.settings", "parallel.settings", "cli"])
def test_torch_is_not_imported(module):
    program = f"import sys, hmt_ds.{module}; sys.exit(1 if 'torch' in sys.modules else 0)"
    assert subprocess.run([sys.executable, "-c", program], cwd=PROJECT, check=False).returncode == 0


@pytest.mark.parametrize("command", ["train", "bench", "launch slurm"])
def test_a_misspelt_key_is_reported_without_torch(command):
    words = ["hmt-ds", *command.split(), "launch/recipes/quickstart.yaml", "--misspelt.key", "1"]
    program = f"""
import atexit, sys
atexit.register(lambda: print("torch" in sys.modules))
sys.argv = {words}
from hmt_ds.cli import main
main()
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert run.returncode == 2 and "misspelt: unknown key" in run.stderr, run.stderr
    assert run.stdout == "False\n"


@pytest.mark.parametrize("name", ["hmt_ds", *(f"hmt_ds.{room}" for room in LAZY)])
def test_packages_export_lazily_what_they_list(name):
    package = import_module(name)
    assert all(getattr(package, exported) is not None for exported in package.__all__)


def test_what_a_package_does_not_export():
    with pytest.raises(AttributeError, match="module 'memory' has no attribute 'misspelt'"):
        hmt_ds.memory.misspelt  # noqa: B018
    with pytest.raises(ImportError):
        from hmt_ds.memory import misspelt  # noqa: F401
