"""Files of the token cache: written completely or not at all, each with its SHA-256, by one process at a time."""

import hashlib
import logging
import mmap
import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)

MOST_TOKENS = 2**31 - 1  # of one document: Arrow's lists count in int32


@contextmanager
def lock(file: Path) -> Iterator[None]:
    """Let one process at a time run a ``with`` block; others wait until it leaves the block or ends.

    The lock only saves work, because files are renamed into place: on a file system without locks all processes enter.

    Args:
        file: File to lock; created if absent.

    Raises:
        OSError: The file cannot be created.
    """
    file.touch()
    held = FileLock(file)
    try:
        try:
            held.acquire(timeout=0)
        except Timeout:
            logger.info("another process tokenizes the same documents: waiting for it")
            held.acquire()
    except (OSError, NotImplementedError):
        logger.warning("%s: no locks on this file system; other processes may tokenize the same documents", file)
    try:
        yield
    finally:
        held.release()


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Yield the path of a temporary file; after the ``with`` block rename it to `file`, or after an error remove it.

    Args:
        file: Path of the file to write.
    """
    aside = file.with_name(f"{file.name}.{uuid.uuid4().hex}")
    try:
        yield aside
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)


def remove_unfinished(folder: Path, name: str) -> None:
    """Remove the temporary files that killed processes left in the token cache.

    Args:
        folder: Folder of the cache.
        name: Beginning of the names of the files whose lock this process holds.
    """
    for file in folder.glob(f"{name}*.arrow.*"):
        with suppress(OSError):
            file.unlink()


def write_batches(file: Path, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> None:
    """Write a file of the token cache in Arrow format, and its SHA-256 beside it.

    Args:
        file: Path of the file.
        batches: The file's rows; all with the schema.
        schema: Columns and their types.

    Raises:
        OSError: The file cannot be written.
    """
    with replacing(file) as aside:
        with pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        with aside.open("rb") as written:
            os.fsync(written.fileno())  # else a power failure may leave a file of zeros under the name
    write_digest(file, sha256(file))


def is_intact(file: Path, *, read: bool = False) -> bool:
    """Return whether a file of the token cache exists and still has the content that was written.

    Arrow does not notice a flipped bit, which would change a token or crash. A file is read and compared with its
    SHA-256 only if its size, times or inode changed since it was last found intact: reading a large cache takes
    minutes.

    Args:
        file: A file of the cache.
        read: Compare the content even if size, times and inode are unchanged.
    """
    try:
        digest, *state = digest_file(file).read_text(encoding="ascii", errors="replace").split()
        if state == _state(file) and not read:
            return True
        if digest != sha256(file):
            return False
    except (OSError, ValueError):
        return False
    with suppress(OSError):  # in a folder of somebody else
        write_digest(file, digest)
    return True


def write_digest(file: Path, digest: str) -> None:
    """Write a file's SHA-256 to a second file beside it, together with its size, times and inode, to notice changes.

    Args:
        file: A file of the token cache.
        digest: The SHA-256, hexadecimal.
    """
    with replacing(digest_file(file)) as aside:
        aside.write_text(" ".join([digest, *_state(file)]), encoding="ascii")


def digest_file(file: Path) -> Path:
    """Return the path of the file that holds the SHA-256 of a file of the token cache."""
    return file.with_suffix(".sha256")


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _state(file: Path) -> list[str]:
    state = file.stat()
    return [str(value) for value in (state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)]


@contextmanager
def on_disk(parts: Iterable[np.ndarray], folder: Path) -> Iterator[pa.Array]:
    """Collect one document's token ids in a temporary file, and yield them as a memory-mapped int32 array.

    Args:
        parts: Token ids, `[tokens]` integers at a time.
        folder: Where to put the temporary file.

    Raises:
        OverflowError: There are more tokens than a list of Arrow can hold (2^31 - 1).
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        size = sum(file.write(ids.astype("<i4").tobytes()) for ids in parts) // 4
        if size > MOST_TOKENS:
            raise OverflowError(f"{size:,} tokens, more than the {MOST_TOKENS:,} that Arrow can hold")
        file.flush()
        content = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) if size else b""
        yield pa.Array.from_buffers(pa.int32(), size, [None, pa.py_buffer(content)])
