"""``hmt-ds convert SOURCE TARGET``: checkpoints of ours and of others into Hugging Face folders."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from hmt_ds.backbones import BackboneError, LoraSettings, build_model, read_config, read_converted
from hmt_ds.checkpoint import CheckpointError, newest_intact
from hmt_ds.checkpoint.files import find_damage
from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.load import load_recipe
from hmt_ds.config.recipe import Recipe
from hmt_ds.conversion.adapters import ADAPTER, Adapters, check_untied, merge_found
from hmt_ds.conversion.card import card
from hmt_ds.conversion.conversion_error import ConversionError
from hmt_ds.conversion.convert_options import ConvertOptions, What
from hmt_ds.conversion.folder import BACKBONE, Export, peft_config, write_folder
from hmt_ds.conversion.foreign import foreign_settings, settings_of
from hmt_ds.conversion.formats import kind_of, read_foreign
from hmt_ds.conversion.skeleton import both, fit, skeleton, with_frozen
from hmt_ds.conversion.weights import Weights, of_checkpoint, of_folder, tensors
from hmt_ds.data import DataError, load_tokenizer
from hmt_ds.memory import MemorySettings
from hmt_ds.memory.settings import Mode

MISTAKES = (ConversionError, BackboneError, CheckpointError, ConfigError, DataError)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def convert(source: Path, target: Path, options: ConvertOptions, overrides: Sequence[str] = ()) -> list[str]:
    """Convert; returns lines for people.

    Args:
        overrides: ``--memory.segment_length 1024`` and the like, for checkpoints without a recipe.

    Raises:
        ValueError: one of MISTAKES, with a line for each problem.
    """
    if target.exists():
        raise ConversionError(f"{target} is there already: name a new folder")
    kind = kind_of(source)
    notes: list[str] = []
    if kind in ("run", "checkpoints", "checkpoint"):
        refuse_foreign_options(options, overrides)
        export = of_run(source, options, notes)
    elif kind == "hugging_face":
        refuse_foreign_options(options, overrides)
        export = of_hugging_face(source, options)
    else:
        export = of_foreign(source, options, overrides, notes)
    if options.dry_run:
        return [*notes, f"would write {target}", export.summary()]
    write_folder(export, target)
    return [*notes, export.summary(), f"written and verified: {target}"]


def refuse_foreign_options(options: ConvertOptions, overrides: Sequence[str] = ()) -> None:
    """What a source says itself is not asked for."""
    given = [*(["--backbone"] if options.backbone else []), *overrides[:1]]
    if given:
        raise ConversionError(f"{given[0]}: the source says this itself")


def of_run(source: Path, options: ConvertOptions, notes: list[str]) -> Export:
    """A run of ours, its folder of checkpoints, or one checkpoint."""
    checkpoint, run = find_checkpoint(source, notes)
    recipe = load_recipe(run / "recipe.yaml")
    model = recipe.model
    config = read_config(model.source, trust_remote_code=model.trust_remote_code)
    settings = settings_of(recipe.memory, config)
    check_part(options, settings.mode, model.train)
    parts = RunParts(recipe, of_checkpoint(checkpoint), config, settings)
    weights, dtype = parts.of(options.what), DTYPES[options.dtype or ("bf16" if model.precision == "bf16" else "fp32")]
    named = model.source if isinstance(model.source, str) else None
    step = json.loads((checkpoint / "progress.json").read_text(encoding="utf-8"))["step"]
    return Export(
        options.what,
        weights,
        config,
        settings,
        dtype,
        tokenizer=find_tokenizer(model.tokenizer or named, notes, options.what),
        generation=generation_of(named, config),
        lora=parts.peft_config() if options.what == "adapter" else None,
        card=card(options.what, f"{run.name}/{checkpoint.name}", settings, named, run, step),
        pictures=tuple(run.glob("loss.png")),
    )


def find_checkpoint(source: Path, notes: list[str]) -> tuple[Path, Path]:
    """The checkpoint that is meant, intact, and the folder with its recipe.

    Raises:
        ConversionError: if either is missing, or the checkpoint is damaged.
    """
    kind = kind_of(source)
    if kind == "checkpoint":
        checkpoint: Path | None = source
        if problems := find_damage(source):
            raise ConversionError(f"{source} is damaged: {problems[0]}")
    else:
        checkpoint = newest_intact(source / "checkpoints" if kind == "run" else source, notes.append)
    if checkpoint is None:
        raise ConversionError(f"{source} has no intact checkpoint")
    run = checkpoint.resolve().parent.parent
    if not (run / "recipe.yaml").is_file():
        raise ConversionError(f"{run / 'recipe.yaml'} is missing: it says what {checkpoint} is a checkpoint of")
    return checkpoint, run


def check_part(options: ConvertOptions, mode: Mode, train: str) -> None:
    """Does the source have the part that is asked for?"""
    if options.what == "adapter" and train != "lora":
        raise ConversionError(f"--what adapter: there is none, model.train was {train}")
    if options.what == "memory" and mode == "backbone":
        raise ConversionError("--what memory: there is none, memory.mode was backbone")
    if options.merge and (train != "lora" or options.what not in ("model", "backbone")):
        raise ConversionError("--merge: for --what model or backbone of a LoRA run alone")
    if train == "lora" and options.what in ("model", "backbone") and not options.merge:
        raise ConversionError(f"--what {options.what} of a LoRA run needs --merge; or take --what adapter or memory")


@dataclass(frozen=True)
class RunParts:
    """The parts of a run's model, each with all its weights."""

    recipe: Recipe
    trained: Weights
    config: Any
    settings: MemorySettings

    def of(self, what: What) -> Weights:
        """One part."""
        if what == "adapter":
            return self.adapters().alone()
        if what == "memory":
            return only(self.trained, what)
        plain = skeleton(self.config, self.settings)
        if self.recipe.model.train == "whole":
            return only(fit(self.trained, plain, "the checkpoint"), what)
        weights = with_frozen(self.trained, self.frozen(), plain)
        if any(name not in weights.shapes for name, _ in plain.named_parameters()):
            weights = both(self.trained, self.frozen_by_transformers())
        weights = fit(weights, plain, "the checkpoint and model.source")
        if self.recipe.model.train == "lora":
            adapters = self.adapters()
            check_untied(adapters.layers(), plain)
            weights = adapters.merged(weights)
        return only(weights, what)

    def frozen(self) -> Weights:
        """The backbone as it was before training."""
        source = self.recipe.model.source
        if isinstance(source, dict):
            raise ConversionError(
                "the backbone was random and not trained as a whole (model.source is a configuration, model.train "
                f"{self.recipe.model.train}): no file has its weights; take --what memory"
            )
        folder = Path(source)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            try:
                folder = Path(snapshot_download(source, allow_patterns=["*.safetensors*", "*.json", "*.bin"]))
            except (OSError, ValueError) as error:
                raise ConversionError(f"model.source {source!r} is not here: {str(error).splitlines()[0]}") from None
        return of_folder(folder).renamed(lambda name: name.removeprefix(f"hmt.{BACKBONE}"))

    def frozen_by_transformers(self) -> Weights:
        """The same where files have other weights than the model, as those of experts: held whole, on the host."""
        model, dtype = self.recipe.model, getattr(self.config, "dtype", None) or torch.float32
        backbone = build_model(str(model.source), dtype=dtype, trust_remote_code=model.trust_remote_code)
        return tensors({f"backbone.{name}": weight for name, weight in backbone.state_dict().items()})

    def lora(self) -> LoraSettings:
        """As the recipe says."""
        return self.recipe.model.lora

    def adapters(self) -> Adapters:
        """Those of a LoRA run."""
        return Adapters(self.trained, skeleton(self.config, self.settings, self.lora()))

    def peft_config(self) -> Any:
        """peft's configuration."""
        source = self.recipe.model.source
        return peft_config(self.lora(), source if isinstance(source, str) else None)


def only(weights: Weights, what: What) -> Weights:
    """The part's weights."""
    if what == "model":
        return weights
    return weights.renamed(lambda name: name if name.startswith(BACKBONE) == (what == "backbone") else None)


def of_hugging_face(source: Path, options: ConvertOptions) -> Export:
    """A folder that was converted before."""
    converted = read_converted(str(source))
    if converted is None:
        raise ConversionError(f"{source} is a plain Hugging Face folder: name it as model.source of a run")
    config, settings = read_config(str(source)), MemorySettings(**converted["memory"])
    check_part(options, settings.mode, "whole")
    weights = of_folder(source).without_prefix("hmt.")
    weights = only(fit(weights, skeleton(config, settings), str(source)), options.what)
    dtype = DTYPES[options.dtype] if options.dtype else getattr(torch, converted.get("dtype", "float32"))
    return Export(
        options.what,
        weights,
        config,
        settings,
        dtype,
        tokenizer=find_tokenizer(str(source), [], options.what),
        generation=generation_of(str(source), config),
        card=card(options.what, source.name, settings),
        pictures=tuple(source.glob("loss.png")),
    )


def of_foreign(source: Path, options: ConvertOptions, overrides: Sequence[str], notes: list[str]) -> Export:
    """HMT-pytorch's weights, or a DeepSpeed folder with them or with ours."""
    weights, aside = read_foreign(source)
    if aside:
        notes.append(f"left aside, no part of the model: {', '.join(aside[:8])}{' ...' if len(aside) > 8 else ''}")
    if not options.backbone:
        raise ConversionError(f"{source} does not say which backbone it has: --backbone FOLDER (with its config.json)")
    config = read_config(options.backbone)
    settings, alpha = foreign_settings(weights, config, overrides)
    check_part(options, settings.mode, "whole")
    if any(ADAPTER in name for name in weights.shapes):
        notes.append(f"LoRA adapters are put into the weights, with alpha {alpha:g}: --lora.alpha names another")
    weights = merge_found(weights, config, settings, alpha)
    fitted = only(fit(weights, skeleton(config, settings), str(source)), options.what)
    return Export(
        options.what,
        fitted,
        config,
        settings,
        DTYPES[options.dtype or "fp32"],
        tokenizer=find_tokenizer(options.backbone, notes, options.what),
        generation=generation_of(options.backbone, config),
        card=card(options.what, source.name, settings),
    )


def find_tokenizer(name: str | None, notes: list[str], what: What) -> Any:
    """The tokenizer, if it can be had."""
    if name is None or what not in ("model", "backbone"):
        return None
    try:
        return load_tokenizer(name)
    except DataError as error:
        notes.append(f"warning: no tokenizer in the folder: {error}")
        return None


def generation_of(source: str | None, config: Any) -> GenerationConfig:
    """How the backbone generates."""
    try:
        if source is not None:
            return GenerationConfig.from_pretrained(source)
    except (OSError, ValueError):
        pass
    return GenerationConfig.from_model_config(config)
