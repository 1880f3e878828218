"""Wrong recipes: each problem is one line, no rank starts, and no file changes.

    python tests/unit/test_bad_input.py

prints all error messages.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
from bad_folder import VOCABULARY, contents, errors_in, make_folder

from hmt_ds import cli

PROJECT = Path(__file__).resolve().parents[2]
NO_EMBEDDINGS = {"model_type": "cpmant", "vocab_size": VOCABULARY, "hidden_size": 16, "dim_ff": 16, "dim_head": 8}

OPT = {"model_type": "opt", "vocab_size": VOCABULARY, "hidden_size": 16, "ffn_dim": 16, "num_attention_heads": 2}


class Case(NamedTuple):
    """Words after the recipe, and a part of each line that must be printed, in order."""

    name: str
    words: list[str]
    lines: list[str]
    recipe: str = "recipe.yaml"


CASES = [
    Case(
        "unknown key",
        ["--memory.segment_lenght", "16"],
        ["memory.segment_lenght: unknown key; did you mean memory.segment_length?"],
    ),
    Case(
        "key in the wrong section",
        ["--training.segment_length", "16"],
        ["training.segment_length: unknown key; did you mean memory.segment_length?"],
    ),
    Case("wrong type", ["--training.steps", "many"], ["training.steps: must be a whole number", "got 'many'"]),
    Case("out of range", ["--training.bptt_depth", "0"], ["training.bptt_depth: must be at least 1"]),
    Case(
        "depth schedule",
        ["--training.bptt_depth", "{5: 2}", "--training.steps", "9"],
        ["training.bptt_depth: a schedule must begin at step 0, got {5: 2}"],
    ),
    Case(
        "depth schedule beyond the run",
        ["--training.bptt_depth", "{0: 1, 9: 2}", "--training.steps", "9"],
        ["training.bptt_depth: step 9 of the schedule is never reached, training.steps is 9"],
    ),
    Case(
        "depth beyond the documents",
        ["--training.bptt_depth", "{0: 1, 4: 2}", "--training.steps", "9"],
        ["the longest of data.train has 1 segments of 16 tokens, the schedule asks for 2"],
    ),
    Case(
        "documents that share segments",
        ["--data.pack", "true", "--compute.cuda_graphs", "always", "--data.retrieval", "{keys: 8, values: 4}"],
        [
            "data.pack: not with data.retrieval, whose documents fill whole segments: set it to false",
            "compute.cuda_graphs is always, but with data.pack each segment has an attention mask of its own",
        ],
    ),
    Case(
        "a model that cannot keep documents in a row apart",
        ["--data.pack", "true", "--model.source", str(OPT)],
        ["data.pack: opt does not keep documents in one row apart: set data.pack to false"],
    ),
    Case("not one of the values", ["--memory.mode", "htm"], ["memory.mode: must be 'hmt', 'rmt' or 'backbone'"]),
    Case("override without a value", ["--training.steps"], ["--training.steps: has no value"]),
    Case("not an override", ["training.steps", "3"], ["training.steps: not an override", "3: not an override"]),
    Case("missing recipe", [], ["recip.yaml: no such recipe; did you mean recipe.yaml?"], "recip.yaml"),
    Case("recipe is no YAML", [], ["broken.yaml: not readable as YAML"], "broken.yaml"),
    Case("recipe is no mapping", [], ["list.yaml: a recipe must be a mapping of sections"], "list.yaml"),
    Case("recipe is empty of keys", [], ["model: missing", "memory: missing", "data: missing"], "empty.yaml"),
    Case(
        "several in the recipe",
        ["--training.steps", "0", "--memry.mode", "hmt", "--model.precision", "fp8"],
        ["model.precision", "training.steps", "memry: unknown key; did you mean memory?"],
    ),
    Case(
        "several in the world",
        [
            *("--memory.sensory_tokens", "40", "--compute.recompute", "reentrant", "--schedule.name", "WarmupLr"),
            *("--deepspeed", "no.json", "--data.train.source", "no.txt", "--model.precision", "fp16"),
        ],
        [
            "memory.sensory_tokens is 40, more than a segment has (16)",
            "compute.recompute: reentrant",
            "model.precision: fp16 needs a GPU",
            "deepspeed: no.json: no such file",
            "schedule.name: WarmupLr is not a schedule of DeepSpeed or torch; did you mean WarmupLR?",
            "data.train: 'no.txt' is neither a file nor a folder",
        ],
    ),
    Case(
        "beyond the positions",
        ["--memory.segment_length", "60"],
        ["memory: 60 fresh + 4 sensory + 2 prompt tokens are 66 positions, the backbone was made for 64"],
    ),
    Case(
        "recall of the paper's interface",
        ["--memory.recalled_memories", "2", "--memory.recall_loss", "0.1"],
        [
            "memory.recalled_memories is 2, but it needs interface adapted and mode hmt (here paper and hmt)",
            "memory.recall_loss is 0.1, but it needs interface adapted and mode hmt (here paper and hmt)",
        ],
    ),
    Case(
        "recall without mode hmt",
        ["--memory.interface", "adapted", "--memory.mode", "rmt", "--memory.recalled_memories", "2"],
        ["memory.recalled_memories is 2, but it needs interface adapted and mode hmt (here adapted and rmt)"],
    ),
    Case(
        "fewer memories cached than recalled",
        ["--memory.interface", "adapted", "--memory.recalled_memories", "3", "--memory.cached_memories", "3"],
        ["memory.recalled_memories is 3 and memory.last_memories 1, but only 3 memories are cached: raise"],
    ),
    Case(
        "several last memories in the paper's interface",
        ["--memory.last_memories", "4"],
        ["memory.last_memories is 4, but more than 1 needs interface adapted (here paper): leave it out"],
    ),
    Case(
        "recall loss on text",
        ["--memory.interface", "adapted", "--memory.recall_loss", "0.1"],
        ["memory.recall_loss is 0.1, but documents do not say which memory answers: only data.retrieval does"],
    ),
    Case("no recalled memory", ["--memory.recalled_memories", "0"], ["memory.recalled_memories: must be at least 1"]),
    Case("negative recall loss", ["--memory.recall_loss", "-1"], ["memory.recall_loss: must be at least 0"]),
    Case("unknown interface", ["--memory.interface", "adept"], ["memory.interface: must be 'paper' or 'adapted'"]),
    Case("sensory tokens", ["--memory.sensory_tokens", "17"], ["memory.sensory_tokens is 17, more than a segment has"]),
    Case("empty data", ["--data.train.source", "empty.txt"], ["data.train: empty.txt holds no documents"]),
    Case("unreadable data", ["--data.train.source", "binary.txt"], ["data.train: cannot read binary.txt as text"]),
    Case("absent data", ["--data.train.source", "no.txt"], ["data.train: 'no.txt' is neither a file nor a folder"]),
    Case(
        "kind of data",
        ["--data.train.source", "data.doc"],
        ["data.train: data.doc: cannot read files with suffix '.doc'"],
    ),
    Case("text field", ["--data.train.text_field", "txt"], ["no column 'txt'; it has: text; did you mean 'text'?"]),
    Case(
        "unknown format", ["--data.train.format", "chat"], ["must be 'text', 'completion', 'messages' or 'questions'"]
    ),
    Case("columns of a format", ["--data.train.format", "completion"], ["has no column 'prompt'; it has: text"]),
    Case(
        "keys of other formats",
        ["--data.train.prompt_weight", "0.5", "--data.validation", "{source: text.txt, chat_template: a}"],
        [
            "data.train: fields {} and prompt_weight 0.5 are not for format text",
            "data.validation: chat_template is for format messages, not text: leave it out",
        ],
    ),
    Case(
        "fields of a format",
        ["--data.train", "{source: text.txt, format: completion, fields: {answer: text}}"],
        ["data.train: fields has answer, but format completion only has prompt, completion"],
    ),
    Case(
        "one field for two columns",
        ["--data.train", "{source: text.txt, format: completion, fields: {prompt: a, completion: a}}"],
        ["names one column for several of prompt, completion"],
    ),
    Case(
        "chat template",
        ["--data.train", "{source: text.txt, format: messages, fields: {messages: text}, chat_template: no.jinja}"],
        ["data.train: chat_template: no.jinja cannot be read (No such file or directory)"],
    ),
    Case(
        "no chat template",
        ["--data.train", "{source: text.txt, format: messages, fields: {messages: text}}"],
        ["data.train: format messages: the tokenizer has no chat template; set chat_template to a file with one"],
    ),
    Case("no data", ["--data.train", "null"], ["data.train: missing (or data.retrieval, to generate documents)"]),
    Case("two sources", ["--data.retrieval.kind", "keys"], ["data.train, data.retrieval: a run trains on one of them"]),
    Case(
        "generated data",
        [
            *("--data.train", "null", "--data.retrieval.keys", "80", "--training.bptt_depth", "1"),
            *("--evaluation.retrieval_segments", "[8, 40]"),
        ],
        [
            "training.bptt_depth: documents of 1 segment are too short: with a question and its",
            "evaluation.retrieval_segments: evaluation documents of 40 segments name 40 different things, but only 20",
            "data.retrieval: a segment of 16 tokens is too short: with this tokenizer an answer, a fact and a question",
        ],
    ),
    Case(
        "range of generated data",
        ["--data.retrieval", "{kind: key, keys: 5000, values: 1, held_out: 1}"],
        ["'keys', 'passkey' or 'overwritten'", "keys: must be at most 4096", "must be at least 2", "must be less than"],
    ),
    Case(
        "held-out data",
        ["--data.validation.source", "no.txt"],
        ["data.validation: 'no.txt' is neither a file nor a folder"],
    ),
    Case(
        "vocabulary",
        ["--model.source.vocab_size", "299"],
        ["model.tokenizer: the tokenizer's ids go up to 299, but the model's vocabulary has 299 ids"],
    ),
    Case("no tokenizer", ["--model.tokenizer", "null"], ["model.tokenizer: missing"]),
    Case(
        "absent tokenizer",
        ["--model.tokenizer", "./no"],
        ["model.tokenizer: tokenizer './no' is neither a file, a folder nor a possible name on the hub"],
    ),
    Case("absent model", ["--model.source", "./no"], ["model './no' (no such folder here)"]),
    Case("no weights", ["--model.source", "no_weights"], ["model 'no_weights': Error no file named model.safetensors"]),
    Case("unknown model type", ["--model.source.model_type", "lama"], ["model 'lama'"]),
    Case("backbone", ["--model.source", json.dumps(NO_EMBEDDINGS)], ["model: cpmant takes no inputs_embeds"]),
    Case("reentrant", ["--compute.recompute", "reentrant"], ["compute.recompute: reentrant", "use segment"]),
    Case(
        "a policy that does not fit",
        ["--compute.recompute", "none", "--training.bptt_depth", "100000000", "--training.batch_size", "64"],
        [
            "compute.recompute none: activations take at least",
            "GiB, this machine has",
            "100000000 segments",
            "take auto",
        ],
    ),
    Case(
        "a segment that does not fit",
        ["--training.batch_size", "1000000000"],
        ["compute.recompute auto: activations take at least", "for one segment of 1000000000 rows", "segment+layer"],
    ),
    Case("leaves without stage 3", ["--compute.leaf_layers", "2", "--deepspeed", "ds_configs/zero2.json"], ["stage 2"]),
    Case(
        "leaves of too many layers",
        ["--compute.leaf_layers", "9", "--deepspeed", "ds_configs/zero3.json"],
        ["compute.leaf_layers is 9 layers, the backbone has 1"],
    ),
    Case("summary batch", ["--compute.summary_batch", "50"], ["compute.summary_batch is 50, a window has"]),
    Case(
        "graphs on the CPU",
        ["--compute.cuda_graphs", "always"],
        ["compute.cuda_graphs is always, but there is no GPU here"],
    ),
    Case("liger is absent", ["--compute.kernels", "liger"], ["compute.kernels: liger-kernel is not installed"]),
    Case(
        "compiled checkpoints",
        ["--compute.kernels", "compile", "--compute.recompute", "selective"],
        ["compute.kernels: compiled layers choose themselves what they keep"],
    ),
    Case("pipeline", ["--pipeline.stages", "2"], ["pipeline.stages is 2, with ZeRO-2", "the backbone has 1 layers"]),
    Case("fp16 on the CPU", ["--model.precision", "fp16"], ["model.precision: fp16 needs a GPU", "use bf16 or fp32"]),
    Case("segments read", ["--evaluation.segments_read", "[4, 2]"], ["evaluation.segments_read is [4, 2]"]),
    Case("a run is there", ["--training.output", "old"], ["training.output: old holds a run already", "resume auto"]),
    Case("output is a file", ["--training.output", "data.doc"], ["training.output: data.doc is a file, give a folder"]),
    Case("missing DeepSpeed file", ["--deepspeed", "zero9.json"], ["deepspeed: zero9.json: no such file"]),
    Case("DeepSpeed file is no JSON", ["--deepspeed", "broken.yaml"], ["deepspeed: broken.yaml: cannot be read"]),
    Case(
        "DeepSpeed file against the recipe",
        ["--deepspeed", "against.json"],
        ["deepspeed: zero_optimization.stage is 7", "deepspeed: gradient_clipping is 5.0 in the DeepSpeed file"],
    ),
    Case(
        "auto nobody decides", ["--deepspeed", "auto.json"], ["deepspeed: zero_optimization.reduce_bucket_size is auto"]
    ),
    Case("unknown schedule", ["--schedule.name", "Linear"], ["schedule.name: Linear is not a schedule"]),
    Case(
        "schedule's arguments", ["--schedule.params", "{steps: 3}"], ["schedule.params: WarmupCosineLR takes no steps"]
    ),
    Case("override is no YAML", ["--training.steps", "[1"], ["training.steps: "]),
    Case("backbone's sizes", ["--model.source.hidden_size", "15"], ["model "]),
    Case("backbone's types", ["--model.source.hidden_size", "x"], ["model "]),
    Case("no language model", ["--model.source", "{model_type: clip}"], ["model: clip cannot be built as a causal"]),
    Case("DeepSpeed section is no section", ["--deepspeed", "number.json"], ["deepspeed: zero_optimization"]),
    Case("stage is no number", ["--deepspeed", "stage.json"], ["deepspeed: zero_optimization.stage is 'two'"]),
    Case("unknown optimizer", ["--optimizer.name", "AdmW"], ["AdmW is not an optimizer", "mean AdamW?"]),
    Case("whole weights", ["--optimizer.name", "Lamb"], ["Lamb must see whole weights, but at ZeRO stage"]),
    Case(
        "adapters by a wrong expression",
        ["--model.train", "lora", "--model.lora.target_modules", "'('"],
        ["model.lora: missing ), unterminated subpattern"],
    ),
    Case("name of a file", ["--data.train.name", "x"], ["data.train: name 'x' is for data sets of the hub only"]),
    Case(
        "negative weight", ["--data.train", "[{source: text.txt, weight: -1}]"], ["train.0.weight: must be at least 0"]
    ),
    Case("no weight", ["--data.train", "[{source: text.txt, weight: 0}]"], ["data.train: all weights are 0"]),
    Case("no sources", ["--data.train", "[]"], ["data.train: must name a source"]),
    Case("weight that is no number", ["--data.train.weight", "true"], ["data.train.weight: must be a number"]),
    Case(
        "weights in a list that are no numbers",
        ["--data.train", "[{source: text.txt, weight: true}]"],
        ["data.train.weight: must be a number"],
    ),
    Case("weight of held-out documents", ["--data.validation", "{source: text.txt, weight: 2}"], ["leave weight out"]),
    Case(
        "slip in a list of sources",
        ["--data.train", "[{source: text.txt}, {sorce: text.txt}]"],
        ["data.train.1.source: missing", "data.train.1.sorce: unknown key; did you mean data.train.source?"],
    ),
    Case(
        "wrong sources in a list",
        ["--data.train", "[{source: no.txt}, {source: text.txt}, {source: empty.txt}]"],
        ["data.train.0: 'no.txt' is neither a file nor a folder", "data.train.2: empty.txt holds no documents"],
    ),
    Case("empty separator", ["--data.train.separator", "''"], ["data.train: separator '' matches every line"]),
    Case("steps of a schedule", ["--schedule.params", "{total_num_steps: 0}"], ["total_num_steps must be a whole"]),
    Case(
        "milestones",
        ["--schedule.name", "MultiStepLR", "--schedule.params", "{milestones: x}"],
        ["schedule.params: milestones must be a list of steps, got 'x'"],
    ),
    Case("matrices", ["--optimizer.name", "Muon"], ["optimizer.name: Muon updates matrices alone", "use AdamW"]),
    Case("other steps", ["--optimizer.name", "LBFGS"], ["optimizer.name: LBFGS is not an optimizer"]),
    Case("optimizer's arguments", ["--optimizer.params", "{beta: 1}"], ["optimizer.params: AdamW does not take"]),
    Case("rate given twice", ["--optimizer.params", "{lr: 1}"], ["optimizer.params: lr must be"]),
    Case("infinite rate", ["--optimizer.lr", ".inf"], ["optimizer.lr: "]),
    Case("schedule's types", ["--schedule.params", "{warmup_num_steps: x}"], ["schedule.params: WarmupCosineLR"]),
    Case("slip in the model", ["--model.source.hiden_size", "16"], ["hiden_size", "did you mean hidden_size?"]),
    Case("LoRA finds nothing", ["--model.train", "lora", "--model.lora.target_modules", "[x]"], ["model.lora: "]),
    Case("slip in the DeepSpeed file", ["--deepspeed", "slip.json"], ["gradient_cliping: unknown key; did you mean"]),
    Case(
        "more than memory holds",
        ["--training.bptt_depth", "1000000000"],
        ["training: batch_size 1 x gradient_accumulation 1 x bptt_depth 1000000000 x memory.segment_length 16 are"],
    ),
    Case("negative seed", ["--training.seed", "-1"], ["training.seed: "]),
    Case("cache is a file", ["--data.cache_dir", "data.doc"], ["data.doc"]),
]


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """The working folder, for a while."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def ask(folder: Path, case: Case) -> tuple[Any, str]:
    """Run `hmt-ds train` in this process; return exit code and stderr."""
    said = io.StringIO()
    with (
        inside(folder),
        mock.patch.object(sys, "argv", ["hmt-ds", "train", case.recipe, *case.words]),
        contextlib.redirect_stderr(said),
        pytest.raises(SystemExit) as end,
    ):
        cli.main()
    return end.value.code, said.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Make a folder that all cases share: none of them may change it."""
    folder = tmp_path_factory.mktemp("bad_input")
    make_folder(folder)
    return folder


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "_"))
def test_problem_is_one_line(folder, case):
    before = contents(folder)
    code, said = ask(folder, case)
    errors = errors_in(said)
    assert code == 2 and errors, said
    text, at = "\n".join(errors), 0
    for part in case.lines:
        at = text.find(part, at)
        assert at >= 0, f"{part!r} is not in\n{text}"
    assert all(len(line) < 400 for line in errors) and "Traceback" not in said
    assert contents(folder) == before


def test_one_line_per_problem(folder):
    several = [case for case in CASES if case.name.startswith("several")]
    for case in several:
        assert len(errors_in(ask(folder, case)[1])) == len(case.lines)
    assert len(several) == 3


def test_one_line_per_setting_of_the_recall(folder):
    recalls = [case for case in CASES if "recall" in case.name]
    assert len(recalls) == 6
    for case in recalls:
        assert len(errors_in(ask(folder, case)[1])) == len(case.lines)


def test_command_in_a_process(folder):
    """In a process of its own it prints nothing but the problems."""
    case = CASES[0]
    run = subprocess.run(
        [sys.executable, "-m", "hmt_ds.cli", "train", case.recipe, *case.words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2 and run.stdout == "" and run.stderr == f"error: {case.lines[0]}\n"


def test_document_shorter_than_a_segment_is_fine(folder, tmp_path):
    from hmt_ds.config.load import load_recipe
    from hmt_ds.preflight.prepare import prepare

    with inside(folder):
        prepared = prepare(load_recipe("recipe.yaml", ["--data.cache_dir", str(tmp_path)]), "recipe.yaml")
    assert prepared.train["length"][0] < 16 and len(prepared.train) == 1


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as place:
        make_folder(Path(place))
        for one in CASES:
            print(f"\n{one.name}: hmt-ds train {' '.join([one.recipe, *one.words])}")
            print("\n".join(errors_in(ask(Path(place), one)[1])))
