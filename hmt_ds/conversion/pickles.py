"""The only place where pickles are read. They come from elsewhere, and a pickle can be a program: those are refused."""

import contextlib
import functools
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hmt_ds.conversion.conversion_error import ConversionError


def deepspeed_classes() -> list[Any]:
    """DeepSpeed's own classes that stand in its checkpoints, and nothing else."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    # Python 3.11.0 to 3.11.3 writes an enum's member as a call of getattr
    members = [(member_of_enum, f"{module}.getattr") for module in ("builtins", "__builtin__")]
    return [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address, *members]


def member_of_enum(kind: Any, name: str) -> Any:
    """What a file gets that asks for ``getattr``: members of DeepSpeed's one enum, and of nothing else."""
    from deepspeed.runtime.zero.config import ZeroStageEnum

    if kind is not ZeroStageEnum:
        raise pickle.UnpicklingError("GLOBAL getattr ")
    return kind[name]


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """While this holds, every ``torch.load`` reads tensors and plain values alone, DeepSpeed's own calls too.

    Those ask for ``weights_only=False`` and run whatever a file says; here their wish is overruled.

    Raises:
        ConversionError: at the end, if a file has code in it.
    """
    load = torch.load

    @functools.wraps(load)
    def safe_load(file: Any, **options: Any) -> Any:
        is_zip = zipfile.is_zipfile(file)
        return load(file, **options | {"map_location": "cpu", "mmap": is_zip, "weights_only": True})

    torch.load = safe_load  # type: ignore[assignment]
    try:
        with torch.serialization.safe_globals(deepspeed_classes()):
            yield
    finally:
        torch.load = load


def read_pickle(file: Path) -> Any:
    """What ``torch.save`` has written, if it is tensors and plain values.

    Raises:
        ConversionError: if there is code in it, or it cannot be read.
    """
    with refusing(file), guarded():
        return torch.load(file)


@contextlib.contextmanager
def refusing(source: Path) -> Iterator[None]:
    """One line instead of what torch says of a pickle that it does not take."""
    try:
        yield
    except pickle.UnpicklingError as error:
        said = str(error)
        name = said.partition("GLOBAL ")[2].split(" ")[0]
        what = f"wants to call {name}" if name else "is no file of weights alone"
        raise ConversionError(f"{source} {what}: refused, for a checkpoint must not hold code") from None
    except (OSError, EOFError, RuntimeError, LookupError, ValueError, TypeError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConversionError(f"{source} cannot be read: {reason}") from None


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """A model's state dict.

    Raises:
        ConversionError: if the file holds something else.
    """
    found = read_pickle(file)
    if not isinstance(found, dict) or not any(isinstance(value, Tensor) for value in found.values()):
        raise ConversionError(f"{file} holds no state dict, but {type(found).__name__}")
    return found
