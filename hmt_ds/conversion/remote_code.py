"""Copy this project's own files into a converted folder, so that the mathematics has one implementation.

transformers loads files of a folder that import each other with ``from .name import``, but no packages. So
``hmt_ds.memory.cell`` becomes ``hmt_memory_cell``, and nothing else is changed.
"""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAIN = "hmt_ds.conversion.modeling_hmt"
IMPORT = re.compile(r"^from (hmt_ds[\w.]*) import", re.MULTILINE)


def remote_code() -> dict[str, str]:
    """Return name and content of each Python file of a converted folder: modeling_hmt.py and what it imports."""
    found: dict[str, str] = {}
    wanted = [MAIN]
    while wanted:
        module = wanted.pop()
        if file_name(module) not in found:
            source = source_of(module)
            wanted += IMPORT.findall(source)
            found[file_name(module)] = IMPORT.sub(lambda m: f"from .{flat_name(m[1])} import", source)
    return dict(sorted(found.items()))


def source_of(module: str) -> str:
    """Return the source code of a module of hmt_ds."""
    path = ROOT.joinpath(*module.split(".")[1:])
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")


def flat_name(module: str) -> str:
    """Return a module's name in a converted folder, which has no packages: hmt_memory_cell for hmt_ds.memory.cell."""
    return "modeling_hmt" if module == MAIN else module.replace("hmt_ds.", "hmt_", 1).replace(".", "_")


def file_name(module: str) -> str:
    """Return the file name of a module in a converted folder."""
    return f"{flat_name(module)}.py"
