"""Hashes of the files of a converted folder: neither transformers nor safetensors notices a flipped bit in a weight."""

import hashlib
import json
import logging
from pathlib import Path

from hmt_ds.backbones.model import BackboneError

HASHES = "sha256.json"
FOR_PEOPLE = (".md", ".png")  # files that no program reads
WEIGHTS = (".safetensors", ".safetensors.index.json")

logger = logging.getLogger(__name__)


def write_hashes(folder: Path) -> None:
    """Write sha256.json into a converted folder: the SHA-256 of every file except README.md and pictures.

    Args:
        folder: the folder.
    """
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.suffix not in FOR_PEOPLE)
    found = {file.relative_to(folder).as_posix(): hash_file(file) for file in files}
    (folder / HASHES).write_text(json.dumps(found, indent=1) + "\n")


def hash_file(file: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_hashes(source: str) -> list[str]:
    """Compare the files of a converted folder with the hashes in its sha256.json.

    Args:
        source: a folder; a folder without sha256.json, or a hub name, passes unchecked.

    Returns:
        A warning for each file that differs and may have been edited, such as config.json.

    Raises:
        BackboneError: a file of weights differs.
    """
    folder, warnings = Path(source), list[str]()
    if not (folder / HASHES).is_file():
        return []
    try:
        hashes = dict(json.loads((folder / HASHES).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        return [f"{folder}/{HASHES} cannot be read ({error}), so damage is not looked for: copy it again"]
    for name, written in hashes.items():
        try:
            changed = hash_file(folder / name) != written
        except (OSError, ValueError) as error:
            warnings.append(f"{folder}/{name} cannot be read ({error}): copy or download it again")
            continue
        if changed and name.endswith(WEIGHTS):
            raise BackboneError(
                f"{folder}/{name} differs from what hmt-ds convert wrote: copy or download it again; if you changed "
                f"it yourself, delete {HASHES}"
            )
        if changed:
            warnings.append(f"{folder}/{name} differs from what hmt-ds convert wrote")
    return warnings


class HashedFolder:
    """Mixin for a transformers model: loading checks the SHA-256 of its folder's files, and saving removes outdated
    ones."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *arguments, **options):  # type: ignore[no-untyped-def]
        """Load a model as transformers does, after comparing its files with the hashes in the folder's sha256.json.

        Args:
            pretrained_model_name_or_path: the folder, or a hub name, which is not checked.
            arguments, options: transformers' arguments of the method of the same name.

        Raises:
            BackboneError: a file of weights differs.
        """
        for line in check_hashes(str(pretrained_model_name_or_path)):
            logger.warning(line)
        return super().from_pretrained(pretrained_model_name_or_path, *arguments, **options)  # type: ignore[misc]

    def save_pretrained(self, save_directory, *arguments, **options):  # type: ignore[no-untyped-def]
        """Save the model as transformers does, and delete the folder's sha256.json, whose hashes would be outdated.

        Args:
            save_directory: the folder.
            arguments, options: transformers' arguments of the method of the same name.
        """
        Path(save_directory, HASHES).unlink(missing_ok=True)
        super().save_pretrained(save_directory, *arguments, **options)  # type: ignore[misc]
