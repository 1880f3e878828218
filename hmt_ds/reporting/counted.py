"""Numbers with their nouns in sentences for people."""


def counted(number: int, noun: str) -> str:
    """Return a number and its noun, such as "1 document" or "1,608 documents".

    Args:
        number: the number.
        noun: the noun in the singular; its plural ends in s.
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
