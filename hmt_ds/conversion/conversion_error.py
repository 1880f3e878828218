"""What can go wrong, for people."""


class ConversionError(ValueError):
    """A conversion that cannot be done: one line that says why."""


def shown(names: list[str]) -> str:
    """The first of some names, and how many follow."""
    return names[0] + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")
