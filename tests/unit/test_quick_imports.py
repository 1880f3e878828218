"""Imports without the garbage collector, without optional packages, and without torch's compiler."""

import gc
import importlib
import importlib.util
import os
import sys

import pytest

from hmt_ds.distributed.quick_imports import COMPILER_OFF, hidden, import_without_compiler, quick_imports


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Name of a module that has not been imported; it notes the variable that turns torch's compiler off."""
    (tmp_path / "seen_by_no_one.py").write_text(f"import os\nfound = os.environ.get({COMPILER_OFF!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "seen_by_no_one"
    sys.modules.pop("seen_by_no_one", None)


@pytest.mark.parametrize("fails", [False, True])
def test_the_collector_rests_only_in_the_block(fails):
    assert gc.isenabled()
    try:
        with quick_imports():
            assert not gc.isenabled()
            if fails:
                raise ImportError
    except ImportError:
        pass
    assert gc.isenabled() and gc.get_freeze_count()
    gc.unfreeze()


def test_a_collector_that_is_off_stays_off():
    gc.disable()
    try:
        with quick_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_hidden_module_is_found_again_afterwards(module):
    with hidden(module):
        assert importlib.util.find_spec(module) is None
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(module)
    assert importlib.import_module(module).found is None
    with hidden(module):  # it is imported already
        assert importlib.import_module(module).found is None
    assert sys.modules[module]


@pytest.mark.parametrize("before", [None, "0"])
def test_the_compiler_is_off_during_the_import_alone(module, monkeypatch, before):
    monkeypatch.delenv(COMPILER_OFF, raising=False)
    if before is not None:
        monkeypatch.setenv(COMPILER_OFF, before)
    import_without_compiler(module)
    assert sys.modules[module].found == "1"
    assert os.environ.get(COMPILER_OFF) == before
