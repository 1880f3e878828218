"""Wrong recipes, with the lines that must be printed: model, memory, computation and training."""

import json
from typing import NamedTuple

from bad_folder import VOCABULARY

NO_EMBEDDINGS = {"model_type": "cpmant", "vocab_size": VOCABULARY, "hidden_size": 16, "dim_ff": 16, "dim_head": 8}


class Case(NamedTuple):
    """Words after the recipe, and a part of each line that must be printed, in order."""

    name: str
    words: list[str]
    lines: list[str]
    recipe: str = "recipe.yaml"


RECIPE_CASES = [
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
    Case("no recalled memory", ["--memory.recalled_memories", "0"], ["memory.recalled_memories: must be at least 1"]),
    Case("negative recall loss", ["--memory.recall_loss", "-1"], ["memory.recall_loss: must be at least 0"]),
    Case("unknown interface", ["--memory.interface", "adept"], ["memory.interface: must be 'paper' or 'adapted'"]),
    Case("sensory tokens", ["--memory.sensory_tokens", "17"], ["memory.sensory_tokens is 17, more than a segment has"]),
    Case(
        "unknown format", ["--data.train.format", "chat"], ["must be 'text', 'completion', 'messages' or 'questions'"]
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
    Case(
        "negative weight", ["--data.train", "[{source: text.txt, weight: -1}]"], ["train.0.weight: must be at least 0"]
    ),
    Case("steps of a schedule", ["--schedule.params", "{total_num_steps: 0}"], ["total_num_steps must be a whole"]),
    Case(
        "milestones",
        ["--schedule.name", "MultiStepLR", "--schedule.params", "{milestones: x}"],
        ["schedule.params: milestones must be a list of steps, got 'x'"],
    ),
    Case(
        "matrices",
        ["--optimizer.name", "Muon"],
        ["optimizer.name: Muon: ", "its norm is taken and clipped", "use AdamW"],
    ),
    Case("8 bits", ["--optimizer.name", "AdamW8bit"], ["optimizer.name: AdamW8bit: bitsandbytes stores", "use AdamW"]),
    Case("mup", ["--optimizer.name", "MuSGD"], ["optimizer.name: MuSGD: it needs the base shapes", "use AdamW"]),
    Case(
        "NVMe",
        ["--deepspeed", "nvme.json"],
        ["zero_optimization.offload_optimizer.device is nvme", "zero_optimization.offload_param.device is nvme"],
    ),
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
]
