"""On PYTHONPATH, hide hmt_ds, DeepSpeed and peft, as in an environment with torch and transformers alone."""

import sys
from typing import Any


class Without:
    """A module finder that raises for these packages."""

    def __init__(self, finder: Any):
        self.finder = finder

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.split(".")[0] in ("hmt_ds", "deepspeed", "peft"):
            return None
        return self.finder.find_spec(name, path, target)


sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
