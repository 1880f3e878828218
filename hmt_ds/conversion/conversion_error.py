"""The exception for checkpoints that cannot be converted to a Hugging Face folder."""

OWN_CODE = (
    "it has its own code (model.trust_remote_code), which a converted folder must not contain: train a model that "
    "transformers has the code of"
)


class ConversionError(ValueError):
    """Raised if a checkpoint cannot be converted; the message gives the reason in one line."""


def first_of(names: list[str]) -> str:
    """Format a list of names for an error message, such as "wte.weight (and 3 more)".

    Args:
        names: the names, at least one.
    """
    return names[0] + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")
