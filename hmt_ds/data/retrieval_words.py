"""The words of generated retrieval documents (samples/retrieval_words.yaml). A thing is an adjective and a noun.

The tokenizer in ``samples/words`` has exactly these words: change both together.
"""

from pathlib import Path

import yaml

_WORDS = yaml.safe_load(Path(__file__).with_name("samples").joinpath("retrieval_words.yaml").read_text("utf-8"))
ADJECTIVES, NOUNS, PLACES = (str(_WORDS[name]).split() for name in ("adjectives", "nouns", "places"))
THINGS = [(adjective, noun) for adjective in ADJECTIVES for noun in NOUNS]
FILLER = [str(sentence).split() for sentence in _WORDS["filler"]]
FACT = "The {} {} is in {} ."
QUESTION = "Where is the {} {} ?"
ANSWER = "It is in {} ."


def all_words() -> list[str]:
    """Return every word of generated documents once, sorted, including the full stop and the question mark."""
    frame = " ".join((FACT, QUESTION, ANSWER)).replace("{}", "").split()
    return sorted({*ADJECTIVES, *NOUNS, *PLACES, *frame, *(word for sentence in FILLER for word in sentence)})
