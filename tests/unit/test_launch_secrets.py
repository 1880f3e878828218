"""Tokens reach ranks on other machines through a file that only its owner can read, never through arguments."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hmt_ds.distributed.process_group import LaunchError, read_secrets

ROOT = Path(__file__).resolve().parents[2]
SECRETS = {"HF_TOKEN": "hf_secret", "WANDB_API_KEY": "two words 'and' \"quotes\" = ä", "NCCL_KEY": "line\nline"}
OTHERS = {
    "HF_HOME": "/home/me",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCHINDUCTOR_CACHE_DIR": "/scratch/kernels",
    "MLFLOW_TRACKING_PASSWORD": "ml_secret",
}


@pytest.fixture
def forwarded(tmp_path) -> Path:
    """Run the part of the launch scripts that forwards variables; return the folder of its files."""
    script = 'umask 022; source launch/node_env.sh; write_deepspeed_env "$1/env"; env >"$1/after"; exec 8>&-'
    venv = Path(sys.executable).parents[1]
    environment = {"PATH": os.environ["PATH"], "VENV": str(venv), "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions")}
    (tmp_path / "secrets").touch(0o644)  # of an earlier start of the same job
    command = ["bash", "-euc", script, "script", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, env=environment | SECRETS | OTHERS, check=True)
    return tmp_path


def test_secrets_are_in_no_argument(forwarded):
    lines = (forwarded / "env").read_text().splitlines()
    names = [line.partition("=")[0] for line in lines]
    assert {"HF_HOME", "TOKENIZERS_PARALLELISM", "TORCHINDUCTOR_CACHE_DIR", "HMT_DS_PRIVATE_FILE", "PATH"} <= set(names)
    assert not set(names) & {*SECRETS, "MLFLOW_TRACKING_PASSWORD"}
    assert "MLFLOW" not in (forwarded / "after").read_text()
    for name in ("env", "secrets"):
        assert stat.S_IMODE((forwarded / name).stat().st_mode) == 0o600


def test_ranks_read_them(forwarded, monkeypatch):
    for name in SECRETS:
        monkeypatch.setenv(name, "")
    read_secrets()
    assert not any(os.environ[name] for name in SECRETS)
    monkeypatch.setenv("HMT_DS_PRIVATE_FILE", str(forwarded / "secrets"))
    read_secrets()
    assert {name: os.environ[name] for name in SECRETS} == SECRETS
    monkeypatch.setenv("HMT_DS_PRIVATE_FILE", str(forwarded / "gone"))
    with pytest.raises(
        LaunchError,
        match=r"gone cannot be read \(No such file or directory\): start from a folder that all machines see",
    ):
        read_secrets()
