"""Read transformers' generation settings from the command line: ``--generation.temperature 0.7``."""

import copy
import difflib

import torch
from transformers import GenerationConfig, set_seed

from hmt_ds.backbones.model import first_line
from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.load import apply_overrides
from hmt_ds.generation.model import Asked
from hmt_ds.generation.options import ChatOptions

SECTION = "generation"
SAMPLING = {"temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"}
# what the commands set themselves, or do not print
RESERVED = {"max_new_tokens", "max_length", "return_dict_in_generate", "num_return_sequences", "use_cache"}


def generation_settings(asked: Asked, options: ChatOptions, given: dict[str, object]) -> GenerationConfig:
    """Return a model's generation settings, changed as the command line asks; check them by generating one token.

    A setting that only sampling uses, such as the temperature, also switches sampling on.

    Args:
        asked: the model, with its stored generation settings, and its tokenizer.
        options: largest number of new tokens, and the seed.
        given: settings from the command line, by transformers' name.

    Raises:
        ConfigError: transformers refuses a setting.
    """
    if given.keys() & SAMPLING:
        given = {"do_sample": True} | given
    config = copy.deepcopy(asked.model.generation_config)
    config.max_length, config.max_new_tokens = None, 1
    config.update(**given)
    token = torch.zeros(1, 1, dtype=torch.long, device=asked.model.device)
    try:
        asked.model.generate(token, generation_config=config, tokenizer=asked.tokenizer)
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError([f"generation: {first_line(error)}; correct the setting, or leave it out"]) from None
    config.max_new_tokens = options.max_new_tokens
    set_seed(options.seed)
    return config


def settings_of(overrides: list[str]) -> dict[str, object]:
    """Return transformers' generation settings by name from words of the command line.

    Args:
        overrides: words such as ``["--generation.top_p", "0.9"]``.

    Raises:
        ConfigError: with a line for each word that is not such a setting, and for each value that cannot be read.
    """
    sections: dict[str, object] = {}
    problems = apply_overrides(sections, overrides)
    given = sections.pop(SECTION, {})
    problems += [f"--{key}: unknown option; write a generation setting like --generation.top_p 0.9" for key in sections]
    if not isinstance(given, dict):
        raise ConfigError(
            [*problems, f"--generation {given}: lacks a setting's name: write it like --generation.top_p 0.9"]
        )
    known = {key for key in GenerationConfig().to_dict() if not key.startswith("_")} - RESERVED
    for key in given.keys() - known:
        near = difflib.get_close_matches(key, known, 1)
        problems.append(f"generation.{key}: unknown setting" + (f"; did you mean {near[0]}?" if near else ""))
    if problems:
        raise ConfigError(problems)
    return given
