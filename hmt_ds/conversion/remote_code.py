"""Copy this project's own files into a converted folder, so that hub users run the same code as training.

transformers loads files of a folder that import each other with ``from .name import``, but no packages. So
``hmt_ds.memory.cell`` becomes ``hmt_memory_cell``. Besides its imports, only modeling_hmt.py is changed: the copy
refuses versions of transformers that are too old, and names all files for versions that would copy too few.
"""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAIN = "hmt_ds.conversion.modeling_hmt"
CHECK = """import transformers

if int(transformers.__version__.split(".")[0]) < 5:
    raise ImportError(f"this model needs transformers 5 or newer, and this is {transformers.__version__}")

"""
ALL_FILES = "Older versions of transformers copy only the files that this one names, not those that they import:"
IMPORT = re.compile(r"^from (hmt_ds[\w.]*) import", re.MULTILINE)


def remote_code() -> dict[str, str]:
    """Return the Python files that a converted folder needs (modeling_hmt.py and its imports): content by file name."""
    found: dict[str, str] = {}
    wanted = [MAIN]
    while wanted:
        module = wanted.pop()
        if file_name(module) not in found:
            source = source_of(module)
            wanted += IMPORT.findall(source)
            found[file_name(module)] = IMPORT.sub(lambda m: f"from .{flat_name(m[1])} import", source)
    main = file_name(MAIN)
    # before the imports, some of which need names that older versions lack
    found[main] = re.sub("^from ", CHECK + "from ", found[main], count=1, flags=re.MULTILINE)
    others = "\n".join(f"from .{name.removesuffix('.py')} import ..." for name in sorted(found) if name != main)
    found[main] += f'\n\n"""{ALL_FILES}\n\n{others}\n"""\n'
    return dict(sorted(found.items()))


def source_of(module: str) -> str:
    """Return the source code of a module of hmt_ds.

    Args:
        module: dotted name, such as hmt_ds.memory.cell.
    """
    path = ROOT.joinpath(*module.split(".")[1:])
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")


def flat_name(module: str) -> str:
    """Return the name of a module's copy in a converted folder: hmt_memory_cell for hmt_ds.memory.cell.

    Args:
        module: dotted name.
    """
    return "modeling_hmt" if module == MAIN else module.replace("hmt_ds.", "hmt_", 1).replace(".", "_")


def file_name(module: str) -> str:
    """Return the file name of a module's copy in a converted folder: hmt_memory_cell.py for hmt_ds.memory.cell.

    Args:
        module: dotted name.
    """
    return f"{flat_name(module)}.py"
