"""Push a converted folder to the hub: ``hmt-ds convert SOURCE TARGET --push OWNER/NAME``."""

from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hmt_ds.backbones.model import first_line
from hmt_ds.conversion.conversion_error import ConversionError


def check_push(name: str) -> None:
    """Check that a folder can be pushed to the hub, before the folder is written.

    Args:
        name: name of the repository, OWNER/NAME.

    Raises:
        ConversionError: if the name is not OWNER/NAME, or there is no token.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConversionError(f"--push {name}: {first_line(error)}") from None
    if name.count("/") != 1:
        raise ConversionError(f"--push {name}: must be OWNER/NAME, such as my-team/my-model")
    if get_token() is None:
        raise ConversionError(f"--push {name}: no token for the hub: run hf auth login or set HF_TOKEN")


def push_folder(folder: Path, name: str) -> str:
    """Upload a converted folder to the hub in one commit; a new repository is private.

    Args:
        folder: the folder.
        name: name of the repository, OWNER/NAME.

    Returns:
        Web address of the repository.

    Raises:
        ConversionError: with the hub's reason; the folder stays.
    """
    api = HfApi()
    try:
        repository = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository.repo_id, folder_path=folder, commit_message="hmt-ds convert")
    except Exception as error:  # of the hub, the network, or what lies between
        raise ConversionError(f"--push {name}: {first_line(error)}; the folder is written, {folder}") from None
    return str(repository)
