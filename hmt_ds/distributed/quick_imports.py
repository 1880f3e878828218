"""Functions to import torch, DeepSpeed and transformers in less time: without garbage collection and optional imports.

The module itself needs only the standard library.
"""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

COMPILER_OFF = "TORCHDYNAMO_DISABLE"  # torch's environment variable


@contextmanager
def quick_imports() -> Iterator[None]:
    """Turn off the garbage collector during the imports in the ``with`` block.

    Imports leave little garbage, and collections take a third of their time. Afterwards the collector ignores what
    exists by then (``gc.freeze``), so a later collection does not visit a million objects of modules.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.freeze()
            gc.enable()


@contextmanager
def hidden(module: str) -> Iterator[None]:
    """Let imports of a module fail with ModuleNotFoundError in the ``with`` block, unless it was imported before.

    For optional imports of other packages that take long and are not needed.

    Args:
        module: dotted name of the module.
    """
    if module in sys.modules:
        yield
        return
    modules: dict[str, object] = sys.modules  # type: ignore[assignment]
    modules[module] = None  # Python's documented way to make an import fail
    try:
        yield
    finally:
        del modules[module]


def import_without_compiler(module: str) -> None:
    """Import a module whose decorators ``@torch.compile`` then do nothing, so that torch's compiler is not loaded.

    Args:
        module: dotted name of the module.
    """
    before = os.environ.get(COMPILER_OFF)
    os.environ[COMPILER_OFF] = "1"
    try:
        import_module(module)
    finally:
        del os.environ[COMPILER_OFF]
        os.environ.update({} if before is None else {COMPILER_OFF: before})
