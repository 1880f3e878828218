"""Metrics in trackers through accelerate: a real MLflow on files, in a process group that stays as it is."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from hmt_ds.preflight.recipe_checks import check_trackers

RUN = """
import sys
from pathlib import Path
import torch
from hmt_ds.reporting.metrics import Metrics

torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
group = torch.distributed.group.WORLD
folder = Path(sys.argv[1]) / "run-7"
folder.mkdir()
recipe = {"model": {"source": "a"}, "training": {"steps": 2, "bptt_depth": {0: 2}}, "deepspeed": "zero1.json"}
metrics = Metrics(folder, trackers=["mlflow"], project="novels", recipe=recipe)
for step, loss in ((1, 3.5), (2, 2.5)):
    metrics.write({"step": step, "loss": loss, "mfu": None})
metrics.close()
assert torch.distributed.group.WORLD is group and not metrics.warned
"""


def test_mlflow_has_the_run_with_its_recipe_and_metrics(tmp_path):
    uri = (tmp_path / "mlruns").as_uri()
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "PYTHONPATH": str(Path(__file__).parents[2])}
    environment |= {"MLFLOW_ALLOW_FILE_STORE": "true"}
    ran = subprocess.run([sys.executable, "-c", RUN, tmp_path], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    metrics = list((tmp_path / "mlruns").glob("*/*/metrics/train/*"))
    assert [file.name for file in metrics] == ["loss"]  # a metric without a value is left out
    assert [line.split()[1:] for line in metrics[0].read_text().splitlines()] == [["3.5", "1"], ["2.5", "2"]]
    run = metrics[0].parents[2]
    assert "run_name: run-7" in (run / "meta.yaml").read_text()
    assert (run / "params" / "training.steps").read_text() == "2"
    assert (run / "params" / "training.bptt_depth.0").read_text() == "2"


def test_a_tracker_that_is_not_installed_is_named():
    def problems(*names: str) -> list[str]:
        return check_trackers(SimpleNamespace(logging=SimpleNamespace(trackers=list(names))))

    assert problems("mlflow", "comet_ml") == ["logging.trackers: comet_ml not installed here: pip install comet-ml"]
    assert problems("mlflow") == problems() == []
