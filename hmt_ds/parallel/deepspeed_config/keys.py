"""What DeepSpeed itself makes of a file: the keys that it looks for, and what it refuses."""

import copy
import difflib
import functools
from typing import Any

from deepspeed.runtime.config import DeepSpeedConfig


def unknown_keys(config: dict[str, Any]) -> list[str]:
    """Keys that DeepSpeed would pass over in silence, with the known one that each looks like or begins."""
    known = sorted(known_keys())
    problems = []
    for key in [key for key in config if key not in known]:
        near = difflib.get_close_matches(key, known, 1, cutoff=0.8)
        near += sorted((name for name in known if name.startswith(key)), key=len)
        problems.append(f"{key}: unknown key; " + (f"did you mean {near[0]}?" if near else "leave it out"))
    return problems


class Noted(dict[str, Any]):
    """A DeepSpeed file that notes what it is asked for."""

    def __init__(self, values: dict[str, Any]):
        super().__init__(values)
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def keys(self) -> Any:
        """The file itself: DeepSpeed looks in it for ``key in file.keys()``."""
        return self


@functools.cache
def known_keys() -> frozenset[str]:
    """The keys that DeepSpeed looks for when it reads a file; it has no list of them."""
    file = Noted({"train_micro_batch_size_per_gpu": 1})
    DeepSpeedConfig(file)
    return frozenset(file.asked)


def refusal(config: dict[str, Any]) -> list[str]:
    """What DeepSpeed says against a whole file, in a line: the first thing that it finds."""
    try:
        DeepSpeedConfig(copy.deepcopy(config))
    except Exception as error:  # whatever its sections raise
        return [f"DeepSpeed refuses the file: {' '.join(str(error).split())[:300] or type(error).__name__}"]
    return []
