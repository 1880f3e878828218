"""Train as `python -m hmt_ds.train` does, and write what each rank reads in each step to the folder DOCUMENTS_LOG.

DOCUMENTS_LOG=FOLDER python tests/distributed/logged_documents.py RECIPE [--section.key value ...]
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from hmt_ds import train
from hmt_ds.training.trainer import Trainer

training_step = Trainer.training_step


def logged(self: Trainer, step: int, windows: list[Any], loading_seconds: float) -> Any:
    """Take a step, and write a line for each row of this rank before it."""
    size = len(windows[0].documents)
    lines = []
    for row in range(size):
        pieces = []
        for window in windows:
            for n in range(window.documents.shape[1]):
                ids = window.input_ids[row, n, : window.lengths[row, n]].numpy().tobytes()
                begun = [window.documents[row, n].item()] * window.starts[row, n].item()
                begun += [] if window.others is None else window.others[row, n].tolist()
                pieces.append([[one for one in begun if one >= 0], hashlib.sha256(ids).hexdigest()[:16]])
        lines.append(json.dumps({"step": step, "row": int(os.environ["RANK"]) * size + row, "pieces": pieces}) + "\n")
    with Path(os.environ["DOCUMENTS_LOG"], f"{os.environ['RANK']}.jsonl").open("a") as file:
        file.write("".join(lines))
    return training_step(self, step, windows, loading_seconds)


if __name__ == "__main__":
    Trainer.training_step = logged
    raise SystemExit(train.main())
