"""Check that a new environment with only torch and transformers reproduces a trained run's logits and text.

    python tests/distributed/fresh_environment.py [--folder FOLDER]

trains a tiny Llama for three steps on two ranks at ZeRO-3, converts the run and reads the folder. Not part of the
tests: pip downloads packages.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml
from ranks import PROJECT
from safetensors.torch import load_file, save_file
from test_convert_run import SHORT, by_trainer, convert
from tiny_recipe import VOCABULARY, make_materials, train, write_recipe

LLAMA = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.06,  # with 0.02 recall weighs all memories equally, which would hide a wrong recall
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CLOSE = 1e-6


def make_folder(folder: Path) -> None:
    """A converted run, and a document of six and a half segments."""
    make_materials(folder)
    recipe = write_recipe(folder)
    values = yaml.safe_load(recipe.read_text())
    values["model"]["source"] = LLAMA
    recipe.write_text(yaml.safe_dump(values))
    for code, printed in (train(recipe, folder / "run", *SHORT), convert(folder / "run", folder / "hf")):
        assert code == 0, printed
    ids = torch.randint(3, VOCABULARY, (2, 104), generator=torch.Generator().manual_seed(0))
    save_file({"input_ids": ids, "labels": ids.clone()}, folder / "ids.safetensors")


def make_environment(folder: Path) -> Path:
    """Create a virtual environment with the tested versions; return its Python."""
    pinned = re.search(r"^TORCH=(\S+)", (PROJECT / "launch/setup_env.sh").read_text(), re.MULTILINE)
    assert pinned
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin/python"
    pins = ["-c", str(PROJECT / "launch/constraints.txt")]
    subprocess.run([python, "-I", "-m", "pip", "install", "-q", *pins, pinned[1], "transformers"], check=True)
    return python


def read_in(python: Path, folder: Path) -> dict[str, torch.Tensor]:
    """Run the document in that Python, isolated (-I) from other packages."""
    script, found = Path(__file__).with_name("read_folder.py"), folder / "found.safetensors"
    command = [python, "-I", script, folder / "hf", folder / "ids.safetensors", found]
    environment = os.environ | {"HF_MODULES_CACHE": str(folder / "modules"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "False False" in done.stdout, done.stdout + done.stderr
    return load_file(found)


def compare(folder: Path) -> None:
    """Make the folder and the environment, and compare the results."""
    began = time.monotonic()
    make_folder(folder)
    made = time.monotonic()
    python = make_environment(folder / "venv")
    installed = time.monotonic()
    found, expected = read_in(python, folder), by_trainer(folder, folder / "run")
    subprocess.run([python, "-I", "-m", "pip", "list"], check=True)
    document = load_file(folder / "ids.safetensors")["input_ids"]
    far = (found["logits"] - expected["logits"]).abs().max().item()
    same = torch.equal(found["generated"], torch.cat([document, expected["generated"]], dim=1))
    print(f"logits differ by at most {far:.1e} (of {expected['logits'].abs().max():.2f}); same text generated: {same}")
    print(f"{made - began:.0f} s to train and convert, {installed - made:.0f} s to install, ", end="")
    print(f"{time.monotonic() - installed:.0f} s to read and compare")
    assert far <= CLOSE and same and expected["logits"].std() > 0.1


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", help="where all of it stays, to be looked at")
    with tempfile.TemporaryDirectory() as temporary:
        compare(Path(parser.parse_args().folder or temporary))
