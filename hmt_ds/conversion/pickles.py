"""Read PyTorch's pickle files. A pickle can run code, so pickles that contain code are refused."""

import contextlib
import functools
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from hmt_ds.conversion.conversion_error import ConversionError


def allowed_globals() -> list[type | Callable[..., object] | tuple[Callable[..., object], str]]:
    """List the classes that a checkpoint's pickle may name besides torch's: those in DeepSpeed's checkpoints."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    # Python 3.11.0 to 3.11.3 pickles a member of an enum as a call of getattr
    members = [(member_of_enum, f"{module}.getattr") for module in ("builtins", "__builtin__")]
    return [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address, *members]


def member_of_enum(kind: Any, name: str) -> object:
    """Return a member of DeepSpeed's enum ``ZeroStageEnum``: the only use of ``getattr`` that a pickle may make.

    Args:
        kind: the class that the pickle names.
        name: name of the member.

    Raises:
        pickle.UnpicklingError: if ``kind`` is another class.
    """
    from deepspeed.runtime.zero.config import ZeroStageEnum

    if kind is not ZeroStageEnum:
        raise pickle.UnpicklingError("GLOBAL getattr is not allowed")
    return kind[name]


@contextlib.contextmanager
def weights_only() -> Iterator[None]:
    """Make every ``torch.load`` in the ``with`` block read tensors and plain values only, also inside DeepSpeed.

    DeepSpeed's reader passes ``weights_only=False``, which would run code in a file.
    """
    load = torch.load

    @functools.wraps(load)
    def safe_load(file: str | Path | BinaryIO, **options: Any) -> Any:
        is_zip = zipfile.is_zipfile(file)
        return load(file, **options | {"map_location": "cpu", "mmap": is_zip, "weights_only": True})

    torch.load = safe_load  # type: ignore[assignment]
    try:
        with torch.serialization.safe_globals(allowed_globals()):
            yield
    finally:
        torch.load = load


def read_pickle(file: Path) -> Any:
    """Read a file written by ``torch.save`` that holds tensors and plain values.

    Raises:
        ConversionError: if the file contains code or cannot be read.
    """
    with one_line_errors(file), weights_only():
        return torch.load(file)


@contextlib.contextmanager
def one_line_errors(source: Path) -> Iterator[None]:
    """Return a context that turns any error from loading a pickle into a ConversionError of one line.

    Args:
        source: the pickle file, or its folder, to name in the error.

    Raises:
        ConversionError: naming ``source`` and the reason.
    """
    try:
        yield
    except pickle.UnpicklingError as error:
        said = str(error)
        name = said.partition("GLOBAL ")[2].split(" ")[0]
        what = f"wants to call {name}" if name else "does not hold only weights"
        raise ConversionError(
            f"{source} {what}: refused, because it could run any code: name a file that holds tensors only"
        ) from None
    except (OSError, EOFError, RuntimeError, LookupError, ValueError, TypeError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConversionError(
            f"{source} cannot be read ({reason}): copy it again, or name another checkpoint"
        ) from None


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """Read a state dict (tensors by name) from a file written by ``torch.save``.

    Raises:
        ConversionError: if the file contains code, cannot be read, or holds something else.
    """
    found = read_pickle(file)
    if not isinstance(found, dict) or not any(isinstance(value, Tensor) for value in found.values()):
        raise ConversionError(
            f"{file} holds {type(found).__name__}, not a state dict with tensors: name a file of weights"
        )
    return found
