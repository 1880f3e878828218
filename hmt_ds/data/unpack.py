"""Decompress files once, a block at a time, into the cache of the `datasets` library."""

import hashlib
import uuid
from pathlib import Path

import datasets
import pyarrow as pa

from hmt_ds.data.errors import DataError, first_line
from hmt_ds.data.file_kinds import COMPRESSIONS

BLOCK = 1 << 16  # bytes read at a time


def unpacked(file: Path) -> Path:
    """Return the path of a compressed file's decompressed copy in the cache of `datasets`; a file that is not
    compressed is returned itself.

    Args:
        file: The file, whose suffix (.gz, .zst, ...) says whether it is compressed.

    Raises:
        DataError: The file is cut short or damaged, or the cache cannot be written.
    """
    compression = COMPRESSIONS.get(file.suffix.lower())
    if compression is None:
        return file
    state = file.stat()
    # the modification time is kept by rsync -t, tar and cp -p, so a replaced file can have the old one's
    content = f"{file.resolve()} {state.st_size} {state.st_ctime_ns}"
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "hmt_ds_unpacked"
    target = folder / hashlib.sha256(content.encode()).hexdigest()[:32]
    if target.exists():
        return target
    aside = target.with_suffix(f".{uuid.uuid4().hex}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _unpack(file, compression, aside)
        return aside.replace(target)
    except OSError as error:
        raise DataError(
            f"{file} cannot be decompressed into {folder}: {first_line(error)}; check access and free space"
        ) from error
    finally:
        aside.unlink(missing_ok=True)


def _unpack(file: Path, compression: str, target: Path) -> None:
    """Decompress a file (`gzip` or `zstd`) into another one.

    Raises:
        DataError: The compressed data is damaged.
        OSError: The target cannot be written.
    """
    lines = 0
    with pa.input_stream(str(file), compression=compression, buffer_size=BLOCK) as stream, target.open("wb") as out:
        while True:
            try:
                block = stream.read(BLOCK)
            except OSError as error:
                reason = "is cut short" if "Truncated" in str(error) else f"is damaged ({first_line(error)})"
                raise DataError(f"{file} {reason}: it can be read up to line {lines + 1:,}; copy it again") from error
            if not block:
                return
            lines += block.count(b"\n")
            out.write(block)
