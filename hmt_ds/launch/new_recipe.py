"""``hmt-ds init``: write a commented recipe from a few answers, with a layout over GPUs chosen by the planner."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
from rich.prompt import Prompt

from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.json_schema import SCHEMA_FILE, editor_line
from hmt_ds.config.options import parse_options
from hmt_ds.config.recipe import Recipe
from hmt_ds.launch.init_options import InitOptions
from hmt_ds.planning.cluster import Fleet, fleet_of, read_gpus, read_link
from hmt_ds.planning.recipe_plan import RecipePlan, changes_for, plan_recipe

TEMPLATE = Path(__file__).with_name("recipe.yaml.j2")
ASKED = {
    "model": "backbone, a Hugging Face folder or hub name",
    "data": "training documents, a file or folder",
    "validation": "held-out documents, a file or folder (empty: none)",
    "train": "train the whole backbone, lora adapters, or keep it frozen",
    "steps": "optimizer steps",
}
RATES = ((0.3e9, "6.0e-4"), (1e9, "3.0e-4"), (5e9, "1.0e-4"))  # by parameters, as launch/recipes has them
SEGMENT = 256  # tokens, as measured
LARGE_RATE, LORA_RATE = "2.0e-5", "2.0e-4"


def write_recipe(file: Path, options: InitOptions, given: set[str]) -> list[str]:
    """Write a new recipe from options, asking in a terminal for the missing ones; return lines to print about it.

    Args:
        file: path of the recipe to write.
        options: options of `hmt-ds init`.
        given: names of the options that the user gave.

    Raises:
        ConfigError: the file exists or cannot be written, or there is no training data.
    """
    if file.exists():
        raise ConfigError([f"{file} exists and is not overwritten: name a new file"])
    if sys.stdin.isatty():
        options = ask(options, given)
    if options.data is None:
        raise ConfigError(["--data: missing, give --data PATH with a file or folder of training documents"])
    values, lines = choose(file, options)
    values |= {name: in_yaml(values[name]) for name in ("model", "data", "validation", "output") if values[name]}
    values["editor_line"] = editor_line(SCHEMA_FILE)
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(values)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError([f"{file} cannot be written: {error.strerror}; name another file"]) from None
    return [f"recipe       {file}", *lines, f"next         hmt-ds check {file}"]


def in_yaml(value: object) -> str:
    """Format a name or a path as a YAML scalar, quoted only if YAML requires it.

    Args:
        value: the name or the path.
    """
    text = str(value)
    return text if re.fullmatch(r"[A-Za-z/][\w./-]*", text) else json.dumps(text, ensure_ascii=False)


def ask(options: InitOptions, given: set[str]) -> InitOptions:
    """Ask in the terminal for each option of `hmt-ds init` that the user did not give, again until the answer is valid.

    Args:
        options: the options so far; their values are offered as defaults.
        given: names of the options that the user gave.
    """
    for name, question in ASKED.items():
        while name not in given:
            default = getattr(options, name)
            answer = Prompt.ask(question, default="" if default is None else str(default))
            try:
                answered, _ = parse_options(InitOptions, [f"--{name}", answer] if answer else [])
            except ConfigError as error:
                print("\n".join(error.problems))
                continue
            if name == "data" and answered.data is None:
                print("there is no training without documents")
                continue
            options = replace(options, **{name: getattr(answered, name)})
            break
    return options


def choose(file: Path, options: InitOptions) -> tuple[dict[str, Any], list[str]]:
    """Choose the values of a new recipe; if GPUs and model are known, with the fastest layout that fits.

    Args:
        file: path of the new recipe, from which the default output folder is named.
        options: options of `hmt-ds init`.

    Returns:
        The variables of the recipe's template, and lines to print about the layout.
    """
    fleet = fleet_of_options(options)
    values = {
        "model": options.model,
        "train": options.train,
        "precision": "bf16" if fleet else "fp32 # bf16 on a GPU",
        "segment_length": SEGMENT,
        "data": options.data,
        "validation": options.validation,
        "output": options.output or Path("runs") / file.stem,
        "steps": options.steps,
        "every": max(1, min(500, options.steps // 4)),
        "batch_size": 4,
        "accumulation": 1,
        "deepspeed": "ds_configs/zero2.json",
        "reduction": "auto",
        "recompute": "auto",
        "stages": 1,
        "micro_batches": "auto",
        "planned": "",
        "lr": LORA_RATE if options.train == "lora" else RATES[0][1],
        "lr_comment": "measured for 135M parameters, trained whole",
    }
    found = planned(values, fleet) if fleet else None
    if fleet is None:
        return values, ["layout       ZeRO-2, 4 rows per rank: no GPU here, and no --gpus"]
    if found is None:
        return values, [f"layout       ZeRO-2, 4 rows per rank: the sizes of {options.model} are not known here"]
    return fitted(values, found, options.train)


def fleet_of_options(options: InitOptions) -> Fleet | None:
    """Return the GPUs for which the memory and speed of a new recipe are estimated.

    Args:
        options: options of `hmt-ds init`.

    Returns:
        The GPUs of --gpus, or else this machine's; None if neither is known.

    Raises:
        ConfigError: the GPUs of --gpus cannot be spread over nodes.
    """
    if options.gpus:
        try:
            return fleet_of(*read_gpus(options.gpus), None, read_link("50GB/s"))
        except ValueError as error:
            raise ConfigError([f"--gpus: {error}"]) from None
    from hmt_ds.launch.dry_run import fleet_here

    return fleet_here(None)


def planned(values: dict[str, Any], fleet: Fleet) -> RecipePlan | None:
    """Estimate the memory and speed of a new recipe in several layouts over some GPUs.

    Args:
        values: variables of the recipe's template.
        fleet: number and type of GPUs.

    Returns:
        The estimates; None if the sizes of the recipe's model are not known.
    """
    recipe = Recipe.model_validate(
        {
            "model": {"source": values["model"], "train": values["train"]},
            "memory": {
                "interface": "adapted",
                "mode": "rmt",
                "segment_length": SEGMENT,
                "memory_tokens": 16,
                "last_memories": 4,
            },
            "data": {"train": {"source": str(values["data"])}},
            "training": {"output": str(values["output"]), "steps": values["steps"], "batch_size": 4},
            "optimizer": {"lr": 1e-5},
            "deepspeed": "ds_configs/zero2.json",
        }
    )
    try:
        return plan_recipe(recipe, Path("recipe.yaml"), fleet)
    except ConfigError:
        return None


def fitted(values: dict[str, Any], found: RecipePlan, train: str) -> tuple[dict[str, Any], list[str]]:
    """Change the values of a new recipe to the fastest layout that fits the GPUs.

    Args:
        values: variables of the recipe's template.
        found: estimates of the recipe in several layouts.
        train: which weights of the backbone are trained: ``whole``, ``lora`` or ``frozen``.

    Returns:
        The changed variables, and lines to print about the layout.

    Raises:
        ConfigError: no layout fits.
    """
    size, best = found.size.parameters, found.others[0]
    if not best.memory.fits:
        raise ConfigError([f"no layout of {found.model} fits {found.fleet}: take more GPUs, or --train lora"])
    if train != "lora":
        values["lr"] = next((rate for most, rate in RATES if size < most), LARGE_RATE)
    if values["lr"] != RATES[0][1]:
        values["lr_comment"] = "a guess: only that of 135M parameters was measured"
    changes = changes_for(best)
    names = {"training.batch_size": "batch_size", "training.gradient_accumulation": "accumulation"}
    values |= {names.get(key, key.rpartition(".")[2]): value for key, value in changes.items()}
    values["planned"] = f" for {found.fleet}"
    speed = f"{best.tokens_per_second:,.0f} tokens/s per GPU, planned"
    return values, [f"layout       {best.layout.family}, {values['batch_size']} rows per rank: {speed}"]
