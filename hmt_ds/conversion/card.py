"""Write the README.md (model card) of a converted folder: contents, usage, training recipe and results."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import NotRequired, TypedDict

import yaml
from huggingface_hub import EvalResult, ModelCardData

from hmt_ds.evaluation.files import own_evaluations
from hmt_ds.memory import MemorySettings
from hmt_ds.reporting.counted import counted
from hmt_ds.reporting.metrics import read_metrics

# The model is loaded before the tokenizer: in transformers 4 its code names the version that it needs, while tokenizers
# that transformers 5 has written fail with "'list' object has no attribute 'keys'"
USES = {
    "model": """import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)  # or it asks
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

PNG = b"\x89PNG\r\n\x1a\n"  # how every such file begins
COSTS = {"cost_swapped": "another document's memory costs", "cost_none": "no memory costs"}
Interval = list[float | None]  # a figure, and both ends of its 95% interval


class Data(TypedDict):
    """The held-out documents of an evaluation, as its JSON file describes them.

    Attributes:
        source: file, folder or data set that the documents are from.
        sha256: SHA-256 of the token ids, in hexadecimal.
        documents: number of documents.
        tokens: number of tokens of all documents.
    """

    source: str
    sha256: str
    documents: int
    tokens: int


class EvaluationRow(TypedDict):
    """One row of an evaluation's JSON file: the loss on tokens with a certain number of segments before them.

    Attributes:
        segments_read: smallest number of segments before a token of this row.
        below: upper bound (excluded) of the number of segments before a token of this row.
        tokens: number of scored tokens.
        perplexity: exp of the mean loss; None without tokens.
        nats: mean loss per token in nats, with its 95% confidence interval.
        cost_swapped: increase of the loss, in nats per token, if each document gets another document's memories.
        cost_none: increase of the loss, in nats per token, if memories are left out.
    """

    segments_read: int
    below: int
    tokens: int
    perplexity: float | None
    nats: Interval
    cost_swapped: NotRequired[Interval]
    cost_none: NotRequired[Interval]


class Evaluation(TypedDict):
    """Held-out losses of a run after one optimizer step, as read from ``evaluation/step_*.json`` in the run's folder.

    Attributes:
        step: the optimizer step.
        data: the held-out documents.
        verdict: a sentence on whether the memory helps; None if the loss was not also computed with other memories.
        rows: losses by the number of segments before a token.
    """

    step: int
    data: Data
    verdict: str | None
    rows: list[EvaluationRow]


def card(
    what: str,
    origin: str,
    settings: MemorySettings,
    base: str | None = None,
    run: Path | None = None,
    step: int = 0,
) -> str:
    """Return the text of a converted folder's README.md (model card).

    Args:
        what: ``model``, ``backbone``, ``memory`` or ``adapter``.
        origin: short name of the converted checkpoint.
        settings: settings of the memory.
        base: hub name of the backbone that training started from; not mentioned if it is a local folder.
        run: folder of the run, which has the recipe, the metrics and the plot of the loss; None for other checkpoints.
        step: optimizer step of the checkpoint.
    """
    evaluation = None if run is None else own_evaluation(run, step)
    sizes = "\n".join(f"| `{key}` | {plain(value)} |" for key, value in asdict(settings).items())
    parts = [
        f"---\n{metadata(what, origin, base, evaluation)}\n---",
        f"# Hierarchical Memory Transformer ({what})",
        f"Written by `hmt-ds convert` from {code(origin)}. A document is read in segments of {settings.segment_length} "
        "tokens; summaries of earlier segments are recalled ([arXiv 2405.06067](https://arxiv.org/abs/2405.06067)).",
        f"```python\n{USES[what]}\n```",
        f"| memory | |\n| --- | --- |\n{sizes}",
    ]
    if run is not None:
        parts += figures(run, step)
        recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
        text = yaml.safe_dump(without_folders(recipe), sort_keys=False, allow_unicode=True)
        parts.append(f"## Recipe\n\n{fenced(text.strip(), 'yaml')}")
    return "\n\n".join(parts) + "\n"


def metadata(what: str, origin: str, base: str | None, evaluation: Evaluation | None) -> str:
    """Return the YAML front matter of a converted folder's README.md, which the hub reads.

    It holds library, tags, base model, and the perplexities of an evaluation.

    Args:
        what: ``model``, ``backbone``, ``memory`` or ``adapter``.
        origin: short name of the converted checkpoint.
        base: hub name of the backbone that training started from; None if unknown.
        evaluation: held-out losses; None if there are none.
    """
    data: dict[str, object] = {"library_name": "peft" if what == "adapter" else "transformers"}
    data["tags"] = ["hmt", "long-context"]
    if base and not Path(base).exists():
        data["base_model"] = base
    if evaluation is not None:
        scored = [row for row in evaluation["rows"] if row["perplexity"] is not None]
        data |= {"model_name": origin, "eval_results": [result_of(evaluation, row) for row in scored]} if scored else {}
    return ModelCardData(**data).to_yaml().rstrip("\n")  # type: ignore[arg-type]


def result_of(evaluation: Evaluation, row: EvaluationRow) -> EvalResult:
    """Return one row of an evaluation as an entry of the hub's model index, with its perplexity.

    Args:
        evaluation: the evaluation, whose documents are named in the entry.
        row: the row: losses on tokens with a certain number of segments before them.
    """
    data = evaluation["data"]
    read = f"{row['segments_read']} to {row['below'] - 1}"
    return EvalResult(
        task_type="text-generation",
        dataset_type="text",
        dataset_name=Path(data["source"]).name,
        dataset_revision=data["sha256"],
        metric_type="perplexity",
        metric_name=f"perplexity behind {read} segments",
        metric_value=row["perplexity"],
    )


def plain(value: object) -> str:
    """Format a value as one line of text without Markdown or HTML, because it may be written by a stranger.

    Args:
        value: a value of a run's recipe.
    """
    return re.sub(r"[^\w .,;/()%+=-]|\b_|_\b", lambda found: f"&#{ord(found[0])};", str(value))


def code(text: str) -> str:
    """Format text as a Markdown code span of one line, escaping whatever characters it contains."""
    line, ticks = " ".join(text.split()), "`" * (longest_fence(text) + 1)
    return f"{ticks} {line} {ticks}" if "`" in line else f"{ticks}{line}{ticks}"


def fenced(text: str, language: str) -> str:
    """Format text as a Markdown code block that the text's own backticks cannot end.

    Args:
        text: content of the block.
        language: language of the block, such as ``yaml``, for highlighting.
    """
    fence = "`" * max(3, longest_fence(text) + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def longest_fence(text: str) -> int:
    """Return the length of the longest run of backticks in a text."""
    return max(map(len, re.findall("`+", text)), default=0)


def picture_of(folder: Path) -> Path | None:
    """Return the path of the loss plot in a run's folder; None if there is none, or it is a link, which could name
    any file."""
    picture = folder / "loss.png"
    if picture.is_symlink() or not picture.is_file():
        return None
    with picture.open("rb") as stream:
        return picture if stream.read(len(PNG)) == PNG else None


def without_folders(value: object) -> object:
    """Shorten every absolute path in a recipe to its last component, for readers on other machines.

    Args:
        value: the recipe, or a section or value of it, as nested mappings and lists.
    """
    if isinstance(value, dict):
        return {key: without_folders(part) for key, part in value.items()}
    if isinstance(value, list):
        return [without_folders(part) for part in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def figures(run: Path, step: int) -> list[str]:
    """Return Markdown about a run's loss and perplexity, with the plot of the loss; empty if the run has none.

    Args:
        run: folder of the run.
        step: optimizer step of the converted checkpoint; later evaluations are left out.

    Returns:
        Sections of README.md, each a heading with its text.
    """
    found = []
    log = run / "metrics.jsonl"
    if log.is_file() and (
        rows := [row for row in read_metrics(log) if row.get("loss") is not None and row["step"] <= step]
    ):
        last = [row["loss"] for row in rows[-10:]]
        found.append(
            f"## Training\n\n{step:,} steps; loss {rows[0]['loss']:.3f} at first, "
            f"{sum(last) / len(last):.3f} over the last {len(last)} that were logged (nats per token)."
        )
    if (found_there := own_evaluation(run, step)) is not None:
        found.append(losses(found_there))
    if picture_of(run):
        found.append("![loss](loss.png)")
    return found


def own_evaluation(run: Path, step: int) -> Evaluation | None:
    """Return a run's newest evaluation on the run's own held-out documents; None if there is none.

    Args:
        run: folder of the run.
        step: optimizer step of the converted checkpoint; later evaluations are left out.
    """
    files = own_evaluations(run)
    for number in sorted((number for number in files if number <= step), reverse=True):
        evaluation: Evaluation = json.loads(files[number].read_text(encoding="utf-8"))
        if "data" in evaluation:  # earlier versions did not say what they had read
            return evaluation
    return None


def losses(evaluation: Evaluation) -> str:
    """Format an evaluation's losses, in nats per token with 95% intervals, as a Markdown table with a caption."""
    rows, data = evaluation["rows"], evaluation["data"]
    costs = [key for key in COSTS if rows and key in rows[0]]
    columns = ["segments read before", "tokens", "perplexity", "nats per token", *(COSTS[key] for key in costs)]
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for row in rows:
        first, last = row["segments_read"], row["below"] - 1
        read = str(first) if last == first else f"{first} to {last}"
        figures = [with_interval(row[key]) for key in ("nats", *costs)]  # type: ignore[literal-required]
        lines.append(f"| {read} | {row['tokens']:,} | {format_value(row['perplexity'])} | {' | '.join(figures)} |")
    name, digest = plain(Path(data["source"]).name), plain(data["sha256"][:12])
    head = f"Held-out loss after step {evaluation['step']} on {name} ({counted(data['documents'], 'document')}, "
    head += f"{data['tokens']:,} tokens, SHA-256 of the ids {digest}), with 95% intervals over documents"
    said = [f"So {plain(evaluation['verdict'])}."] if evaluation["verdict"] else []
    return "\n\n".join([f"{head}:", "\n".join(lines), *said])


def with_interval(value: Interval) -> str:
    """Format a value for a table cell, such as ``2.100 [2.050, 2.150]``; a dash without a value.

    Args:
        value: mean, low and high end of the 95% confidence interval; None for a missing one.
    """
    mean, low, high = map(format_value, value)
    return mean if low == "-" else f"{mean} [{low}, {high}]"


def format_value(value: float | None) -> str:
    """Format a number with three decimals for a table cell; a dash for None."""
    return "-" if value is None else f"{value:z,.3f}"
