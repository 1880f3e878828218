"""The error of a conversion that is not possible."""


class ConversionError(ValueError):
    """A conversion that is not possible: one line that says why."""


def first_of(names: list[str]) -> str:
    """Return the first of some names, and how many more there are."""
    return names[0] + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")
