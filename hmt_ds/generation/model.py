"""Load a model for generation: from a run, one of its checkpoints, or a folder that `hmt-ds convert` wrote."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LogitsProcessor, PreTrainedTokenizerBase

from hmt_ds.backbones import CausalLM
from hmt_ds.conversion.conversion_error import ConversionError
from hmt_ds.conversion.convert import export_source
from hmt_ds.conversion.convert_options import ConvertOptions
from hmt_ds.conversion.export import Export
from hmt_ds.conversion.formats import kind_of
from hmt_ds.conversion.from_run import has_adapters
from hmt_ds.conversion.modeling_hmt import HMTForCausalLM
from hmt_ds.data import check_vocabulary, load_tokenizer
from hmt_ds.generation.options import ChatOptions
from hmt_ds.memory import HMT


@dataclass(frozen=True)
class Asked:
    """A model that answers prompts, and its tokenizer.

    Attributes:
        model: the model, in evaluation mode, on the device that it generates on.
        tokenizer: the tokenizer.
        agreement: makes ranks that share the weights choose the same tokens; None in one process.
    """

    model: HMTForCausalLM
    tokenizer: PreTrainedTokenizerBase
    agreement: LogitsProcessor | None = None


def load_model(source: Path, options: ChatOptions) -> Asked:
    """Load a model and its tokenizer onto the first GPU, or the CPU if there is none.

    Args:
        source: folder of a run, its folder of checkpoints, one checkpoint, or a folder that ``hmt-ds convert`` wrote.
        options: dtype of the weights, and the tokenizer if it is not the model's own.

    Raises:
        ConversionError: the model cannot be loaded, or has no tokenizer.
        DataError: the tokenizer cannot be loaded, or has more tokens than the model.
    """
    kind = kind_of(source)
    if kind in ("state_dict", "deepspeed"):
        raise ConversionError(
            f"{source} has no recipe and no tokenizer: run `hmt-ds convert` on it, and name the converted folder"
        )
    notes: list[str] = []
    merge = kind != "hugging_face" and has_adapters(source)
    export = export_source(source, ConvertOptions(dtype=options.dtype, merge=merge), [], notes)
    tokenizer = load_tokenizer(options.tokenizer) if options.tokenizer else export.tokenizer
    if tokenizer is None:
        reason = "".join(f" ({note})" for note in notes)
        raise ConversionError(f"{source} has no tokenizer{reason}: name one with --tokenizer FOLDER")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = HMTForCausalLM.around(build(export, device))
    check_vocabulary(tokenizer, model.config.vocab_size)
    if export.generation is not None:
        model.generation_config = export.generation
    if model.generation_config.eos_token_id is None:
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    return Asked(model, tokenizer)


def build(export: Export, device: torch.device) -> HMT:
    """Build a model from the exported weights of a run or converted folder, one weight at a time to save memory.

    Args:
        export: configuration, settings and weights.
        device: device of the model.

    Returns:
        The model in evaluation mode.
    """
    with device:
        hmt = HMT(CausalLM(AutoModelForCausalLM.from_config(export.config, dtype=export.dtype)), export.settings)
    for name, child in hmt.named_children():
        if name != "backbone":  # in its type already, with buffers that must keep float32
            child.to(export.dtype)
    state = hmt.state_dict()
    with torch.no_grad():
        for name in export.weights.shapes:
            state[name].copy_(export.weights.read(name))
    return hmt.eval()
