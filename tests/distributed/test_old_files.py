"""A run and a converted folder written by commit fd38114: they resume and load with today's code.

`written_by_fd38114.tar.xz` holds a ZeRO-1 run of six steps on two ranks with the checkpoint of step 3, its log, its
text and tokenizer, and the folder that was converted after step 6, with its code. `FOLDER` in the recipe stands for the
folder that held all of this.
"""

import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_convert_run import by_ours, by_transformers, convert
from tiny_recipe import train

from hmt_ds.reporting.metrics import read_metrics

WRITTEN = Path(__file__).with_name("written_by_fd38114.tar.xz")
# equal bit for bit on the processor that wrote it; another one may add in another order
CLOSE = {"rtol": 0, "atol": 1e-6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Everything unpacked, with the recipe's paths set to where it lies."""
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(WRITTEN) as archive:
        archive.extractall(folder, filter="data")
    recipe = folder / "run" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("FOLDER", str(folder)))
    return folder


def test_a_run_resumes(folder):
    """Losses, learning rates and gradient norms of the steps after the checkpoint, and the weights at the end."""
    run = folder / "run"
    keys = ("step", "loss", "learning_rate", "gradient_norm", "recall_distance")
    before = [[row[key] for key in keys] for row in read_metrics(run / "metrics.jsonl")]
    code, printed = train(run / "recipe.yaml", run, "--checkpoint.resume", "auto")
    assert code == 0 and "resumed from" in printed and "step 3" in printed, printed
    after = [[row[key] for key in keys] for row in read_metrics(run / "metrics.jsonl")]
    torch.testing.assert_close(torch.tensor(after), torch.tensor(before), **CLOSE)
    code, printed = convert(run, folder / "again")
    assert code == 0, printed
    old, new = (load_file(folder / name / "model.safetensors") for name in ("hf", "again"))
    assert old.keys() == new.keys()
    for name, weight in old.items():
        torch.testing.assert_close(new[name], weight, msg=name, **CLOSE)


def test_a_converted_folder_loads_with_its_code_and_without(folder):
    """Its own code under transformers alone, and our class, give the same logits."""
    ids = torch.randint(3, 330, (2, 104), generator=torch.Generator().manual_seed(0))
    save_file({"input_ids": ids, "labels": ids.clone()}, folder / "ids.safetensors")
    with_code, without = by_transformers(folder, folder / "hf"), by_ours(folder, folder / "hf")
    torch.testing.assert_close(without["logits"], with_code["logits"], **CLOSE)
    # the old generate asked for memories once a segment; ours asks with every token, as whole passes of the old code do
    assert torch.equal(without["generated"], with_code["greedy"][:, ids.shape[1] :])


def test_a_converted_folder_is_converted_again(folder):
    code, printed = convert(folder / "hf", folder / "backbone", "--what", "backbone")
    assert code == 0, printed
    old, new = load_file(folder / "hf" / "model.safetensors"), load_file(folder / "backbone" / "model.safetensors")
    assert new and all(torch.equal(weight, old[f"hmt.backbone.model.{name}"]) for name, weight in new.items())
