"""The code of a converted folder under other versions of transformers than the tested ones."""

import sys

import pytest
from transformers.dynamic_module_utils import get_relative_imports

from hmt_ds.conversion.card import USES
from hmt_ds.conversion.remote_code import remote_code


def test_the_main_file_names_all_others(tmp_path):
    """transformers 5.0 and 5.5 copy those that it names, and none that are imported by others alone."""
    files = remote_code()
    (tmp_path / "modeling_hmt.py").write_text(files["modeling_hmt.py"])
    named = {f"{name}.py" for name in get_relative_imports(tmp_path / "modeling_hmt.py")}
    assert named == files.keys() - {"modeling_hmt.py"}


@pytest.mark.parametrize(("version", "refused"), [("4.57.1", True), ("5.0.0", False), ("5.23.0.dev0", False)])
def test_versions_that_lack_what_it_needs_are_named(monkeypatch, version, refused):
    """Before the imports that would fail in other words."""
    head = remote_code()["modeling_hmt.py"].partition("\nfrom ")[0]
    monkeypatch.setattr(sys.modules["transformers"], "__version__", version)
    if refused:
        with pytest.raises(ImportError, match=f"needs transformers 5 or newer, and this is {version}"):
            exec(head, {})
    else:
        exec(head, {})


def test_the_card_loads_the_model_before_the_tokenizer():
    """A tokenizer that transformers 5 has written fails in transformers 4 without a word on versions."""
    use = USES["model"]
    assert 0 < use.index("AutoModelForCausalLM.from_pretrained") < use.index("AutoTokenizer.from_pretrained")
