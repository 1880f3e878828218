"""What a model trained on conversations keeps in its converted folder: chat template, and token that ends an answer."""

from transformers import GenerationConfig, PreTrainedTokenizerBase

from hmt_ds.config.recipe import Recipe
from hmt_ds.conversion.convert_options import What
from hmt_ds.conversion.export import find_tokenizer
from hmt_ds.data import DataError
from hmt_ds.data.chat import end_of_answers
from hmt_ds.data.formats import read_template


def talks(recipe: Recipe) -> bool:
    """Return whether a run was trained on conversations, according to its recipe."""
    return any(source.row_format == "messages" for source in recipe.data.sources("train").values())


def tokenizer_of_run(recipe: Recipe, what: What, notes: list[str]) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer of a run, with the chat template that it was trained with; None if there is none.

    Args:
        recipe: recipe of the run. If its sources have different templates, the tokenizer keeps its own.
        what: exported part: ``model``, ``backbone``, ``memory`` or ``adapter``.
        notes: lines for the user, to which warnings are appended.
    """
    source = recipe.model.source
    tokenizer = find_tokenizer(recipe.model.tokenizer or (source if isinstance(source, str) else None), notes, what)
    files = {one.chat_template for one in recipe.data.sources("train").values() if one.row_format == "messages"}
    file = files.pop() if len(files) == 1 else None
    if tokenizer is not None and file is not None:
        try:
            tokenizer.chat_template = read_template(file)
        except DataError as error:
            notes.append(f"warning: the tokenizer in the folder keeps its own chat template: {error}")
    return tokenizer


def stop_at_answers(
    generation: GenerationConfig, tokenizer: PreTrainedTokenizerBase | None, recipe: Recipe
) -> GenerationConfig:
    """Add the token that ends an answer to the tokens that stop generation, if the run was trained on conversations.

    Args:
        generation: the backbone's generation settings; changed in place.
        tokenizer: the tokenizer with its chat template; with None nothing changes.
        recipe: recipe of the run.

    Returns:
        The object ``generation``.
    """
    if tokenizer is None or not tokenizer.chat_template or not talks(recipe):
        return generation
    end, ends = end_of_answers(tokenizer), generation.eos_token_id
    ends = [tokenizer.eos_token_id] if ends is None else ends if isinstance(ends, list) else [ends]
    if end is not None and end not in ends:
        generation.eos_token_id = [*(one for one in ends if one is not None), end]
    return generation
