"""Convert a checkpoint of a run, whose recipe lies beside its checkpoints."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from transformers import PreTrainedConfig

from hmt_ds.backbones import BackboneError, build_model, read_config
from hmt_ds.checkpoint import newest_intact
from hmt_ds.checkpoint.files import find_damage
from hmt_ds.checkpoint.run_state import read_run_state
from hmt_ds.config.load import load_recipe
from hmt_ds.config.recipe import Recipe
from hmt_ds.conversion.adapters import Adapters, check_untied, peft_config
from hmt_ds.conversion.card import card, picture_of
from hmt_ds.conversion.conversion_error import OWN_CODE, ConversionError
from hmt_ds.conversion.convert_options import ConvertOptions, What, check_part
from hmt_ds.conversion.export import BACKBONE, DTYPES, Export, generation_config, select_part
from hmt_ds.conversion.formats import kind_of
from hmt_ds.conversion.skeleton import combine, match_weights, skeleton, with_frozen, with_recall_dim
from hmt_ds.conversion.trained_chat import stop_at_answers, tokenizer_of_run
from hmt_ds.conversion.weights import Weights, checkpoint_weights, folder_weights, tensor_weights
from hmt_ds.memory import MemorySettings


def export_run(source: Path, options: ConvertOptions, notes: list[str]) -> Export:
    """Read the whole model, or the part that the option ``--what`` names, from a run.

    Args:
        source: the run's folder, its folder of checkpoints, or one checkpoint.
        options: options of ``hmt-ds convert``.
        notes: lines for the user, to which warnings are appended.

    Raises:
        ConversionError: there is no intact checkpoint, recipe or backbone, or the options do not fit the run.
    """
    checkpoint, run = find_checkpoint(source, notes)
    recipe = load_recipe(run / "recipe.yaml")
    model = recipe.model
    config = library_config(recipe)
    settings = with_recall_dim(recipe.memory, config)
    check_part(options, settings.mode, model.train)
    weights = RunWeights(recipe, checkpoint_weights(checkpoint), config, settings)
    named = model.source if isinstance(model.source, str) else None
    step = read_run_state(checkpoint)["step"]
    tokenizer = tokenizer_of_run(recipe, options.what, notes)
    return Export(
        options.what,
        weights.part(options.what),
        config,
        settings,
        DTYPES[options.dtype or ("bf16" if model.precision == "bf16" else "fp32")],
        tokenizer=tokenizer,
        generation=stop_at_answers(generation_config(named, config), tokenizer, recipe),
        lora=weights.peft_config() if options.what == "adapter" else None,
        card=card(options.what, f"{run.name}/{checkpoint.name}", settings, named, run, step),
        pictures=tuple(filter(None, [picture_of(run)])),
    )


def has_adapters(source: Path) -> bool:
    """Return whether a checkpoint of a run contains LoRA adapters.

    Args:
        source: a run, its folder of checkpoints, or one checkpoint.
    """
    _, run = find_checkpoint(source, [])
    return load_recipe(run / "recipe.yaml").model.train == "lora"


def library_config(recipe: Recipe) -> PreTrainedConfig:
    """Read the transformers configuration of a run's backbone without running Python code that comes with the model.

    Args:
        recipe: recipe of the run.

    Raises:
        ConversionError: if the backbone needs its own Python code, which may be another person's.
    """
    model = recipe.model
    try:
        config = read_config(model.source)
    except BackboneError:
        if not model.trust_remote_code:
            raise
    else:
        if not (model.trust_remote_code and getattr(config, "auto_map", None)):
            return config
    raise ConversionError(f"{model.source} cannot be converted: {OWN_CODE}")


def find_checkpoint(source: Path, notes: list[str]) -> tuple[Path, Path]:
    """Find the intact checkpoint to convert: ``source`` itself, or the newest one in it.

    Args:
        source: the run's folder, its folder of checkpoints, or one checkpoint.
        notes: lines for the user, to which damaged checkpoints are appended.

    Returns:
        The checkpoint's folder, and the run's folder with the recipe.

    Raises:
        ConversionError: if checkpoint or recipe is missing, or the named checkpoint is damaged.
    """
    kind = kind_of(source)
    if kind == "checkpoint":
        checkpoint: Path | None = source
        if problems := find_damage(source):
            raise ConversionError(f"{source} is damaged: {problems[0]}: name another checkpoint, or the run")
    else:
        checkpoint = newest_intact(source / "checkpoints" if kind == "run" else source, notes.append)
    if checkpoint is None:
        raise ConversionError(
            f"{source} has no intact checkpoint to convert: train until one is saved (checkpoint.every)"
        )
    # not resolve(): `checkpoints` may be a link to another file system
    run = Path(os.path.abspath(checkpoint)).parent.parent  # noqa: PTH100
    if not (run / "recipe.yaml").is_file():
        run = checkpoint.resolve().parent.parent
    if not (run / "recipe.yaml").is_file():
        raise ConversionError(
            f"{run / 'recipe.yaml'} is missing, without which {checkpoint} cannot be interpreted: copy the recipe there"
        )
    return checkpoint, run


@dataclass(frozen=True)
class RunWeights:
    """All weights of a run's model: trained ones from its checkpoint, frozen ones from its ``model.source``.

    Attributes:
        recipe: the run's recipe.
        trained: weights in the checkpoint.
        config: configuration of the backbone.
        settings: settings of the memory, with ``recall_dim`` filled in.
    """

    recipe: Recipe
    trained: Weights
    config: PreTrainedConfig
    settings: MemorySettings

    def part(self, what: What) -> Weights:
        """Return the weights of a part of the run's model.

        Args:
            what: ``model`` (all), ``backbone``, ``memory`` or ``adapter``; LoRA adapters are merged into the first two.

        Raises:
            ConversionError: the weights of the backbone cannot be found, or an adapter cannot be merged.
        """
        if what == "adapter":
            return self.adapters().separate()
        if what == "memory":
            return select_part(self.trained, what)
        plain = skeleton(self.config, self.settings)
        if self.recipe.model.train == "whole":
            return select_part(match_weights(self.trained, plain, "the checkpoint"), what)
        weights = with_frozen(self.trained, self.frozen(), plain)
        if any(name not in weights.shapes for name, _ in plain.named_parameters()):
            weights = combine(self.trained, self.frozen_by_transformers())
        weights = match_weights(weights, plain, "the checkpoint and model.source")
        if self.recipe.model.train == "lora":
            adapters = self.adapters()
            check_untied(adapters.layers(), plain)
            weights = adapters.merged(weights)
        return select_part(weights, what)

    def frozen(self) -> Weights:
        """Open the weights that the backbone had before training, as stored in the files of ``model.source``.

        Raises:
            ConversionError: the backbone had random weights, or the files cannot be found.
        """
        source = self.recipe.model.source
        if isinstance(source, dict):
            raise ConversionError(
                "the backbone was random and not trained as a whole (model.source is a configuration, model.train "
                f"{self.recipe.model.train}), so no file has its weights; use --what memory"
            )
        folder = Path(source)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            try:
                folder = Path(snapshot_download(source, allow_patterns=["*.safetensors*", "*.json", "*.bin"]))
            except (OSError, ValueError) as error:
                raise ConversionError(
                    f"model.source {source!r} is not a folder here, and cannot be downloaded "
                    f"({str(error).splitlines()[0]}): put the model there, or connect to the hub"
                ) from None
        return folder_weights(folder).renamed(lambda name: name.removeprefix(f"hmt.{BACKBONE}"))

    def frozen_by_transformers(self) -> Weights:
        """Load the whole backbone as it was before training into host memory, through transformers.

        Needed if weights have other names in the files than in the model, as for mixtures of experts, which only
        transformers can translate.
        """
        model, dtype = self.recipe.model, getattr(self.config, "dtype", None) or torch.float32
        backbone = build_model(str(model.source), dtype=dtype)
        return tensor_weights({f"backbone.{name}": weight for name, weight in backbone.state_dict().items()})

    def adapters(self) -> Adapters:
        """Return the LoRA adapters that the run trained."""
        return Adapters(self.trained, skeleton(self.config, self.settings, self.recipe.model.lora))

    def peft_config(self) -> LoraConfig:
        """Return peft's configuration for the run's LoRA adapters."""
        source = self.recipe.model.source
        return peft_config(self.recipe.model.lora, source if isinstance(source, str) else None)
