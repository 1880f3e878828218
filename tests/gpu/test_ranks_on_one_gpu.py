"""On a GPU: several ranks through NCCL give the gradients of one process. Run by hand: pytest -m gpu tests/gpu.

They share one GPU, so that one is enough; NCCL believes that each is on a machine of its own.
"""

import os
import signal
import subprocess
import sys
import time
from typing import Any

import pipeline_gradients
import pytest
import torch
import zero_cases
import zero_gradients
from ranks import GPU_RANKS, PROJECT, free_port
from tiny_recipe import make_materials, write_recipe

from hmt_ds.reporting.metrics import read_metrics

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
ASKED: Any = {"interface": "adapted", "recalled": 2, "recall_loss": 0.3}
PIPELINE = {
    "2 stages": [
        pipeline_gradients.Case(2, 1, 2, 4),
        pipeline_gradients.Case(2, 1, 5, 1, "rmt", "lora"),
        pipeline_gradients.Case(2, 1, 3, 2, mode="backbone"),
        pipeline_gradients.Case(2, 1, 5, 2, spill=True),
        pipeline_gradients.Case(2, 1, 2, 2, kept_graphs=5),
        pipeline_gradients.Case(2, 1, 5, 4, **ASKED),
        pipeline_gradients.Case(2, 1, 5, 2, "rmt", interface="adapted"),
    ],
    "3 stages": [
        pipeline_gradients.Case(3, 1, 5, 4, spill=True, kept_graphs=7),
        pipeline_gradients.Case(3, 1, 1, 1, "rmt"),
        pipeline_gradients.Case(3, 1, 3, 2, mode="backbone"),
        pipeline_gradients.Case(3, 1, 2, 4, mode="backbone", kept_graphs=3),
        pipeline_gradients.Case(3, 1, 5, 4, spill=True, kept_graphs=7, **ASKED),
    ],
    "2 x 2": [pipeline_gradients.Case(2, 2, 2, 2, accumulation=2)],
}
ZERO = [
    zero_cases.Case("zero1", reduction="step"),
    zero_cases.Case("zero2", reduction="step", recompute="none"),
    zero_cases.Case("zero2"),
    zero_cases.Case("zero3"),
    zero_cases.Case("zero3", recompute="segment", summary_batch=3, leaf_layers=2),
    zero_cases.Case("zero3", "lora", reduction="step", summary_batch=2),
    zero_cases.Case("zero3_offload", leaf_layers=2),
    zero_cases.Case("zero2", **ASKED),
    zero_cases.Case("zero3", reduction="step", **ASKED),
    zero_cases.Case("zero3_offload", mode="rmt", interface="adapted"),
]


@pytest.mark.parametrize("cases", PIPELINE.values(), ids=PIPELINE)
def test_pipeline(cases):
    for row in pipeline_gradients.run_cases(cases, one_gpu=True):
        print(row["case"], {key: row[key] for key in ("gradient", "weights", "loss", "norm")})
        assert row["gradient"] < 1e-5 and row["weights"] < 1e-5 and row["norm"] < 1e-5, row
        assert not row["apart"], "tied weights have drifted apart"


def test_zero():
    for row in zero_gradients.run_cases(ZERO, one_gpu=True):
        print(row["case"], {key: row[key] for key in ("gradient", "weights", "loss", "norm")})
        assert row["gradient"] < 1e-5 and row["weights"] < 1e-5 and row["norm"] < 1e-5, row
        assert row["moved"] == [] and row["still"] == [] and row["asleep"] == [], row


def test_stopped_neighbour(tmp_path):
    """The device alone waits for a message; the host says in time who did not send it."""
    make_materials(tmp_path)
    long, stages = ["--training.steps", "100000"], ["--pipeline.stages", "2", "--pipeline.timeout_minutes", "0.2"]
    command = [sys.executable, "-m", "hmt_ds.train", str(write_recipe(tmp_path, 1)), *long, *stages]
    common = os.environ | GPU_RANKS | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    common |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    processes, log = [], tmp_path / "run/metrics.jsonl"
    for rank in range(2):
        own = {"RANK": str(rank), "NCCL_HOSTID": f"machine {rank}"}
        processes.append(
            subprocess.Popen(command, env=common | own, cwd=PROJECT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        )
    try:
        while not (log.exists() and len(read_metrics(log)) > 5):
            assert all(process.poll() is None for process in processes)
            time.sleep(0.1)
        processes[1].send_signal(signal.SIGSTOP)
        said = processes[0].communicate(timeout=40)[1].decode()
    finally:
        for process in processes:
            process.kill()
    assert processes[0].returncode == 1 and "error: rank 1 did not send what rank 0 waits for, for 12 s" in said, said
