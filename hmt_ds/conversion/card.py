"""Write the README.md (model card) of a converted folder: contents, usage, training recipe and results."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TypedDict

import yaml

from hmt_ds.memory import MemorySettings
from hmt_ds.reporting.metrics import read_metrics

USES = {
    "model": """import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
ids = tokenizer(document, return_tensors="pt").input_ids      # of any length
with torch.no_grad():
    loss = model(ids, labels=ids, logits_to_keep=1).loss
print(tokenizer.decode(model.generate(ids, max_new_tokens=100)[0, ids.shape[1]:]))""",
    "backbone": """from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(FOLDER)          # the backbone alone, without memory""",
    "memory": """from safetensors.torch import load_file

weights = load_file(f"{FOLDER}/memory.safetensors")           # prompts and recall; sizes in memory_config.json""",
    "adapter": """from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BACKBONE), FOLDER)""",
}


class Evaluation(TypedDict):
    """Held-out perplexities after one step, as read from ``evaluation/step_*.json`` in a run's folder."""

    step: int
    rows: list[dict[str, float]]


def card(
    what: str,
    origin: str,
    settings: MemorySettings,
    base: str | None = None,
    run: Path | None = None,
    step: int = 0,
) -> str:
    """Return the text of a converted folder's README.md.

    Args:
        what: ``model``, ``backbone``, ``memory`` or ``adapter``.
        origin: short name of the converted checkpoint.
        settings: settings of the memory.
        base: hub name of the backbone that training started from; not mentioned if it is a local folder.
        run: folder of the run, which has the recipe, the metrics and the plot of the loss; None for other checkpoints.
        step: optimizer step of the checkpoint.
    """
    head = ["library_name: " + ("peft" if what == "adapter" else "transformers"), "tags: [hmt, long-context]"]
    head += [f"base_model: {json.dumps(base)}"] if base and not Path(base).exists() else []
    sizes = "\n".join(f"| `{key}` | {value} |" for key, value in asdict(settings).items())
    parts = [
        "---\n" + "\n".join(head) + "\n---",
        f"# Hierarchical Memory Transformer ({what})",
        f"Written by `hmt-ds convert` from `{origin}`. A document is read in segments of {settings.segment_length} "
        "tokens; summaries of earlier segments are recalled ([arXiv 2405.06067](https://arxiv.org/abs/2405.06067)).",
        f"```python\n{USES[what]}\n```",
        f"| memory | |\n| --- | --- |\n{sizes}",
    ]
    if run is not None:
        parts += figures(run, step)
        recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
        text = yaml.safe_dump(without_folders(recipe), sort_keys=False, allow_unicode=True)
        parts.append(f"## Recipe\n\n```yaml\n{text.strip()}\n```")
    return "\n\n".join(parts) + "\n"


def without_folders(value: object) -> object:
    """Shorten every absolute path in a recipe to its last component: folders of the training machine help no reader."""
    if isinstance(value, dict):
        return {key: without_folders(part) for key, part in value.items()}
    if isinstance(value, list):
        return [without_folders(part) for part in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def figures(run: Path, step: int) -> list[str]:
    """Return Markdown about a run's loss and perplexity up to a step, with the plot of the loss, if they exist."""
    found = []
    log = run / "metrics.jsonl"
    if log.is_file() and (
        rows := [row for row in read_metrics(log) if row["loss"] is not None and row["step"] <= step]
    ):
        last = [row["loss"] for row in rows[-10:]]
        found.append(
            f"## Training\n\n{step:,} steps; loss {rows[0]['loss']:.3f} at first, "
            f"{sum(last) / len(last):.3f} over the last {len(last)} that were logged (nats per token)."
        )
    evaluations = {int(file.stem.removeprefix("step_")): file for file in (run / "evaluation").glob("step_*.json")}
    if before := [number for number in evaluations if number <= step]:
        found.append(perplexities(json.loads(evaluations[max(before)].read_text())))
    if (run / "loss.png").is_file():
        found.append("![loss](loss.png)")
    return found


def perplexities(evaluation: Evaluation) -> str:
    """Format the perplexities of an evaluation as a Markdown table."""
    rows = evaluation["rows"]
    keys = list(rows[0]) if rows else []
    lines = [f"| {' | '.join(keys)} |", f"|{' --- |' * len(keys)}"]
    lines += [f"| {' | '.join(format_value(row[key]) for key in keys)} |" for row in rows]
    return f"Held-out perplexity after step {evaluation['step']}:\n\n" + "\n".join(lines)


def format_value(value: float) -> str:
    """Format a number for a table cell: floats with three decimals, integers as they are."""
    return f"{value:,.3f}" if isinstance(value, float) else str(value)
