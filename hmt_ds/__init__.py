"""Distributed training of the Hierarchical Memory Transformer (arXiv 2405.06067) on DeepSpeed."""

import ast
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hmt_ds.conversion.pretrained import load_pretrained

__all__ = ["__version__", "load_pretrained"]
__version__ = "0.1.0"


def lazy_imports(file: str) -> Callable[[str], object]:
    """Return a module-level ``__getattr__`` (PEP 562) that imports what a package exports on first access.

    The exports are the imports under ``if TYPE_CHECKING`` in the package's ``__init__.py``, where type checkers and
    editors see them. So ``import hmt_ds.memory.settings`` does not import torch, though ``hmt_ds.memory`` exports the
    model.

    Args:
        file: ``__file__`` of the package.

    Raises:
        AttributeError: from the returned function, if the package has no such export.
    """
    blocks = [node for node in ast.parse(Path(file).read_text(encoding="utf-8")).body if isinstance(node, ast.If)]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    modules = {alias.name: str(node.module) for node in imports for alias in node.names}

    def getattr_lazily(name: str) -> object:
        if name not in modules:
            raise AttributeError(f"module {Path(file).parent.name!r} has no attribute {name!r}")
        return getattr(import_module(modules[name]), name)

    return getattr_lazily


if not TYPE_CHECKING:  # or mypy would accept any name
    __getattr__ = lazy_imports(__file__)


def __dir__() -> list[str]:
    """Return the public names alone, for ``dir`` and completion in a shell."""
    return __all__
