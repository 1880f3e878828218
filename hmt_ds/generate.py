"""Generate on this rank, which holds a part of the weights: ``--module hmt_ds.generate RUN [options] [settings]``.

The weights of a run, however it was trained, are divided among the ranks as at ZeRO-3, and gathered layer by layer in
every forward pass. All ranks generate the same text, and rank 0 prints it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from hmt_ds.distributed.quick_imports import quick_imports

with quick_imports():
    import torch
    import torch.distributed as dist
    from torch import Tensor
    from transformers import LogitsProcessor

    from hmt_ds.checkpoint import load_weights
    from hmt_ds.config.config_error import ConfigError
    from hmt_ds.config.load import NO_CONSENT, load_recipe
    from hmt_ds.config.options import parse_options
    from hmt_ds.config.recipe import Compute, Optimizer, Pipeline, Recipe, Schedule
    from hmt_ds.conversion.conversion_error import ConversionError
    from hmt_ds.conversion.convert import MISTAKES
    from hmt_ds.conversion.export import generation_config
    from hmt_ds.conversion.formats import kind_of
    from hmt_ds.conversion.from_run import find_checkpoint, library_config
    from hmt_ds.conversion.modeling_hmt import HMTForCausalLM
    from hmt_ds.conversion.trained_chat import stop_at_answers, tokenizer_of_run
    from hmt_ds.data import check_vocabulary, load_tokenizer
    from hmt_ds.distributed.process_group import all_reduce_sum, end_process, rank
    from hmt_ds.distributed.stopping import Stopped, StopSignals
    from hmt_ds.generation.generate import continue_prompts, prompts_of
    from hmt_ds.generation.interrupt import UntilInterrupted
    from hmt_ds.generation.model import Asked
    from hmt_ds.generation.options import GenerateOptions
    from hmt_ds.generation.sampling import settings_of
    from hmt_ds.training.build import build_reader
    from hmt_ds.training.rank import prepare_together, run_as_rank
    from hmt_ds.training.source_weights import with_source_weights


def main() -> int:
    """Generate as one rank, from this process's command line; return the exit code."""
    return run_as_rank(generate)


def generate(source: str, words: list[str], device: torch.device) -> None:
    """Continue prompts on this rank, together with the other ranks.

    Args:
        source: folder of a run, or of one of its checkpoints.
        words: options of `hmt-ds generate`, and transformers' generation settings.
        device: device of this rank.

    Raises:
        ConfigError: with a line for each problem.
        Stopped: a rank has received a stop signal; what was generated until then has been printed.
    """
    signals = StopSignals()
    options, overrides = parse_options(GenerateOptions, words)
    try:
        prompts, given = prompts_of(options), settings_of(overrides)
        if "max_time" in given:
            raise ConfigError(["generation.max_time: each rank has its own clock: use --max-new-tokens, or one rank"])
        asked = load_shared(Path(source), options, device)
        until = UntilAnyRankStops(signals, device)
        with nullcontext() if rank() == 0 else silence():
            continue_prompts(asked, prompts, options, given, until)
    except MISTAKES as error:
        raise ConfigError(str(error).splitlines()) from None
    if until.hit:
        raise Stopped("stopped by a signal")


def load_shared(source: Path, options: GenerateOptions, device: torch.device) -> Asked:
    """Load this rank's part of a run's weights, and the run's tokenizer.

    Args:
        source: folder of a run, or of one of its checkpoints.
        options: dtype of the weights, and the tokenizer if it is not the run's own.
        device: device of this rank.

    Raises:
        ConversionError: the source is no run, or has no intact checkpoint or no tokenizer.
        ConfigError, CheckpointError, DataError: recipe, checkpoint or tokenizer cannot be used.
    """
    if kind_of(source) not in ("run", "checkpoints", "checkpoint"):
        raise ConversionError(f"--ranks: {source} is not a run: name a run, or leave --ranks out")
    notes: list[str] = []
    checkpoint, run = find_checkpoint(source, notes)
    recipe = load_recipe(run / "recipe.yaml", [*NO_CONSENT])
    tokenizer = load_tokenizer(options.tokenizer) if options.tokenizer else tokenizer_of_run(recipe, "model", notes)
    if tokenizer is None:
        reason = "".join(f" ({note})" for note in notes)
        raise ConversionError(f"{source} has no tokenizer{reason}: name one with --tokenizer FOLDER")
    config, named = library_config(recipe), recipe.model.source
    generation = generation_config(named if isinstance(named, str) else None, config)
    recipe = sharded(recipe, options.dtype)
    prepared = prepare_together(recipe, run / "recipe.yaml", writes_output=False, with_data=False)
    reader = build_reader(with_source_weights(recipe), prepared, device)
    load_weights(reader, checkpoint)
    model = HMTForCausalLM.around(reader.engine.module)
    check_vocabulary(tokenizer, model.config.vocab_size)
    model.generation_config = stop_at_answers(generation, tokenizer, recipe)
    if model.generation_config.eos_token_id is None:
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    return Asked(model, tokenizer, ScoresOfRankZero())


def sharded(recipe: Recipe, dtype: str | None) -> Recipe:
    """Return a run's recipe with its weights divided among all ranks, and without what only training uses.

    Args:
        recipe: the recipe.
        dtype: ``bf16`` or ``fp32``; None for the dtype that a converted folder would have.
    """
    usual = "bf16" if recipe.model.precision == "bf16" else "fp32"
    changes: dict[str, Any] = {"model": recipe.model.model_copy(update={"precision": dtype or usual})}
    changes |= {"pipeline": Pipeline(), "compute": Compute(), "optimizer": Optimizer(lr=1.0), "schedule": Schedule()}
    return recipe.model_copy(update=changes | {"deepspeed": "ds_configs/zero3.json"})


class UntilAnyRankStops(UntilInterrupted):
    """Stopping criterion that ends all rows on all ranks after any rank has received a stop signal.

    Args:
        signals: records stop signals that this process receives.
        device: device of this rank.
    """

    def __init__(self, signals: StopSignals, device: torch.device):
        super().__init__()
        self.signals, self.device = signals, device

    def __enter__(self) -> "UntilAnyRankStops":
        return self  # the signals are recorded already

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        """Return whether each row ends here, ``[batch]`` bool; all ranks must call it.

        Args:
            input_ids: ``[batch, tokens]``.
            scores: not used.
        """
        self.hit = bool(all_reduce_sum(torch.tensor([self.signals.received], device=self.device)).item())
        return super().__call__(input_ids, scores)


class ScoresOfRankZero(LogitsProcessor):
    """Logits processor that gives all ranks rank 0's scores: ranks that chose different tokens would wait for ever."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return rank 0's scores ``[batch, vocabulary]``; all ranks must call it.

        Args:
            input_ids: ``[batch, tokens]``; not used.
            scores: this rank's scores, ``[batch, vocabulary]``.
        """
        scores = scores.contiguous()
        # BROADCAST from rank 0 to all ranks, once per token
        dist.broadcast(scores, 0)
        return scores


@contextmanager
def silence() -> Iterator[None]:
    """Return a context in which nothing is printed, for ranks that would repeat what rank 0 prints."""
    with Path(os.devnull).open("w") as gone, redirect_stdout(gone), redirect_stderr(gone):
        yield


if __name__ == "__main__":
    end_process(main())
