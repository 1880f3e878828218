"""Find the keys of a configuration file that DeepSpeed would ignore, and the values that it or hmt_ds refuses."""

import copy
import difflib
import functools
from typing import Any

from deepspeed.runtime.config import DeepSpeedConfig


def unknown_keys(config: dict[str, object]) -> list[str]:
    """Return an error line for each key of a DeepSpeed configuration that DeepSpeed would ignore; the line suggests the
    most similar known key.

    Args:
        config: DeepSpeed's configuration.
    """
    known = sorted(known_keys())
    problems = []
    for key in [key for key in config if key not in known]:
        near = difflib.get_close_matches(key, known, 1, cutoff=0.8)
        near += sorted((name for name in known if name.startswith(key)), key=len)
        problems.append(f"{key}: unknown key; " + (f"did you mean {near[0]}?" if near else "leave it out"))
    return problems


class RecordingDict(dict[str, object]):
    """A dict for DeepSpeed's configuration that records in its set ``asked`` which keys DeepSpeed looks up.

    Args:
        values: keys and values of the configuration.
    """

    def __init__(self, values: dict[str, object]):
        super().__init__(values)
        self.asked: set[str] = set()

    # DeepSpeed has no schema of the whole file and ignores unknown keys. Its reader looks up every key in one of three
    # ways: `config.get(KEY, default)`, `KEY in config` and `KEY in config.keys()`. To record these look-ups is the only
    # list of its keys that stays right when its version changes.

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def keys(self) -> Any:
        """Return the dict itself instead of a view, so that ``key in config.keys()`` is recorded as a lookup too."""
        return self


@functools.cache
def known_keys() -> frozenset[str]:
    """Return all top-level keys that DeepSpeed looks up when it reads a configuration."""
    file = RecordingDict({"train_micro_batch_size_per_gpu": 1})
    DeepSpeedConfig(file)
    return frozenset(file.asked)


def nvme_problems(config: dict[str, Any]) -> list[str]:
    """Return an error line for each part of a model's state that a DeepSpeed configuration offloads to NVMe, which is
    refused.

    DeepSpeed holds such a part in memory only while it uses it, but checkpoints read and write all weights and states
    between two steps.

    Args:
        config: DeepSpeed's configuration.
    """
    parts = {"offload_optimizer": "optimizer states", "offload_param": "weights"}
    return [
        f"zero_optimization.{key}.device is nvme, but between steps DeepSpeed has the {part} on the disk alone, where "
        "checkpoints cannot read them: take cpu"
        for key, part in parts.items()
        if (config.get("zero_optimization", {}).get(key) or {}).get("device") == "nvme"
    ]


def refusal(config: dict[str, object]) -> list[str]:
    """Return the error with which DeepSpeed refuses a configuration, as a list of one line; an empty list if it
    accepts.

    Args:
        config: DeepSpeed's configuration.
    """
    try:
        DeepSpeedConfig(copy.deepcopy(config))
    except Exception as error:  # its sections raise all kinds
        return [f"DeepSpeed refuses the file: {' '.join(str(error).split())[:300] or type(error).__name__}"]
    return []
