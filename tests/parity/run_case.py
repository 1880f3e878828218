"""Compare hmt_ds with stored cases of the reference implementation: losses, logits, memories, gradients, generation.

    python tests/parity/run_case.py FILE...

Prints the largest relative error of each kind and exits 1 if any is above 1e-6. README.md describes the file format.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM

from hmt_ds.backbones import CausalLM, read_config
from hmt_ds.memory import HMT, MemorySettings, MemoryState, read_window, split_document

TOLERANCE = 1e-6
KINDS = ("loss", "logits", "memory_prompt", "memory", "gradients", "generated")
NAMES = {
    "memory_cell.memory": "initial_prompt.embeddings.weight",
    "mem": "summary_prompt.embeddings.weight",
    "cross_attn.wq.weight": "recall.query.weight",
    "cross_attn.wk.weight": "recall.key.weight",
}


def ours(name: str) -> str:
    """The reference's parameter name in our model."""
    return NAMES.get(name, name.replace("memory_cell.model.", "backbone.model."))


def read_case(file: Path) -> tuple[dict, dict[str, Tensor]]:
    """A case's settings and tensors."""
    with safe_open(file, framework="pt") as case:
        return json.loads(case.metadata()["case"]), {name: case.get_tensor(name) for name in case.keys()}  # noqa: SIM118


def build(case: dict, tensors: dict[str, Tensor]) -> HMT:
    """Our model with the case's weights, in float64."""
    config = read_config(case["backbone_config"])
    settings = MemorySettings(
        mode="backbone" if case["mode"] == "baseline" else case["mode"],
        segment_length=case["segment_length"],
        sensory_tokens=case["sensory_tokens"],
        cached_memories=case["cached_memories"],
        summary_fraction=case["summary_fraction"],
        recall_dim=case["recall_hidden_dim"],
    )
    model = HMT(CausalLM(AutoModelForCausalLM.from_config(config)), settings).double().eval()
    weights = {ours(k.removeprefix("weight.")): v for k, v in tensors.items() if k.startswith("weight.")}
    for name, parameter in aliases(model).items():
        if not (stored := [weights[alias] for alias in name if alias in weights]):
            raise SystemExit(f"{case['name']}: no weights for {name[0]}")
        parameter.data.copy_(stored[0])
    return model


def aliases(model: HMT) -> dict[tuple[str, ...], torch.nn.Parameter]:
    """Each parameter once, under all names that it has (tied embeddings have two)."""
    names: dict[torch.nn.Parameter, tuple[str, ...]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[parameter] = (*names.get(parameter, ()), name)
    return {all_names: parameter for parameter, all_names in names.items()}


def error(value: Tensor, reference: Tensor, floor: float = 0.0) -> float:
    """|value - reference| / max(|reference|, floor)."""
    relative = float((value.detach() - reference).norm() / max(float(reference.norm()), floor, 1e-300))
    return math.inf if math.isnan(relative) else relative


def run_case(file: Path) -> dict[str, float]:
    """The relative error of each kind that the case holds."""
    case, tensors = read_case(file)
    model = build(case, tensors)
    ids, mask = tensors["input_ids"], tensors["attention_mask"].bool()
    window = split_document(ids, case["segment_length"], None if mask.all() else mask)
    state = MemoryState.empty(
        len(ids), 1, model.backbone.dim, case["sensory_tokens"], dtype=torch.float64, device=ids.device
    )
    outputs = [output for output, _ in read_window(model, model.settings, window, state, with_logits=True)]
    logits = torch.cat([o.logits[:, -case["segment_length"] :] for o in outputs], dim=1)[:, : ids.shape[1]]
    scored = case["scored_labels"]
    loss = torch.nn.functional.cross_entropy(logits[:, -scored - 1 : -1].flatten(0, 1), ids[:, -scored:].flatten())
    loss.backward()
    wanted = tensors["logits"]
    errors = {
        "loss": error(loss, tensors["loss"][0]),
        "logits": error(logits[:, -wanted.shape[1] :], wanted),
        "gradients": gradient_error(model, tensors),
    }
    for kind, attribute in (("memory_prompt", "prompt"), ("memory", "memory")):
        if f"trace.{kind}" in tensors:
            errors[kind] = error(torch.stack([getattr(o, attribute) for o in outputs]), tensors[f"trace.{kind}"])
    if "generated" in tensors:
        new = continue_last_segment(model, ids, case["generate_new_tokens"])
        errors["generated"] = float((new != tensors["generated"]).double().mean())
    return errors


@torch.no_grad()
def continue_last_segment(model: HMT, ids: Tensor, new: int) -> Tensor:
    """Continue documents as the reference does: its last segment goes on, however long it becomes.

    Its summary reads the tokens that it had at first. (Our own generation begins another segment behind L tokens.)
    """
    settings = model.settings
    closed = (ids.shape[1] - 1) // settings.segment_length * settings.segment_length
    state = MemoryState.empty(
        len(ids), 1, model.backbone.dim, settings.sensory_tokens, dtype=torch.float64, device=ids.device
    )
    *_, (_, state) = read_window(model, settings, split_document(ids[:, :closed], settings.segment_length), state)
    query = model.read_ahead(
        split_document(ids[:, closed:], settings.segment_length, goes_on=True).summary(0, 1, state.tail, settings)
    )
    prompt, _ = model.memory_prompt(state.memories, state.valid, settings.mode, query)
    for _ in range(new):
        opened = ids[:, closed:]
        segment = split_document(opened, opened.shape[1], goes_on=True).segment(0, state.tail, settings)
        hidden, _ = model.read(segment, prompt)
        ids = torch.cat([ids, model.backbone.logits(hidden[:, -1:]).argmax(dim=2)], dim=1)
    return ids[:, -new:]


def gradient_error(model: HMT, tensors: dict[str, Tensor]) -> float:
    """The largest relative error of any parameter's gradient; a missing or unexpected gradient counts as 1."""
    expected = {ours(k.removeprefix("grad.")): v for k, v in tensors.items() if k.startswith("grad.")}
    floor = 1e-6 * max(float(gradient.norm()) for gradient in expected.values())
    worst = 0.0
    for names, parameter in aliases(model).items():
        stored = [expected.pop(name) for name in names if name in expected]
        if stored and parameter.grad is not None:
            worst = max(worst, error(parameter.grad, stored[0], floor))
        elif stored or (parameter.grad is not None and float(parameter.grad.norm()) > floor):
            print(f"{names[0]}: gradient {'missing' if stored else 'unexpected'}", file=sys.stderr)
            worst = max(worst, 1.0)
    return worst if not expected else 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    table = Table("case", *KINDS, title="largest relative error against the reference, float64")
    worst = 0.0
    for file in parser.parse_args().files:
        errors = run_case(file)
        worst = max(worst, *errors.values())
        table.add_row(file.stem, *(f"{errors[kind]:.1e}" if kind in errors else "-" for kind in KINDS))
    Console(width=120).print(table)
    print(f"largest: {worst:.1e} ({'at most' if worst <= TOLERANCE else 'ABOVE'} {TOLERANCE:.0e})")
    sys.exit(int(worst > TOLERANCE))


if __name__ == "__main__":
    main()
