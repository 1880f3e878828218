"""Make documents of a given number of tokens that hide a story's facts among sentences of a novel, with a question."""

import re
from dataclasses import dataclass
from pathlib import Path
from random import Random

from transformers import PreTrainedTokenizerBase

from hmt_ds.data.stories import TASKS, Story

SAMPLES = Path(__file__).parent / "samples"
NOVELS = {"train": "prideprejudice.txt", "test": "persuasion.txt"}  # what is asked about is never the noise of training
SENTENCE = re.compile(r"(?<=[.!?][\"']|.[.!?])(?<!Mr\.)(?<!Mrs\.)\s+(?=[\"'A-Z])")


@dataclass(frozen=True)
class Task:
    """A generated document, and a question about a fact that is hidden in it.

    Attributes:
        text: the document, without the question.
        question: text that follows the document and ends in `Answer:`.
        story: the facts that the document hides, the question and the right answer.
        place: where the last fact that the answer needs begins, as a fraction of the document (0 to 1).
    """

    text: str
    question: str
    story: Story
    place: float


class Haystack:
    """Makes documents that hide the facts of a story among the sentences of a novel.

    Args:
        tokenizer: counts tokens.
        part: `train` or `test`, which use different novels.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, part: str):
        text = (SAMPLES / NOVELS[part]).read_text(encoding="utf-8")
        sentences = (" ".join(sentence.split()) for sentence in SENTENCE.split(text))
        self.sentences = [sentence for sentence in sentences if 3 <= len(sentence.split()) <= 60]
        self.tokenizer = tokenizer
        self.sizes = [self.count(f" {sentence}") for sentence in self.sentences]

    def count(self, text: str) -> int:
        """Return the number of tokens of a text within a document, without BOS and EOS.

        Args:
            text: the text.
        """
        return len(self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    def task(self, name: str, length: int, seed: int) -> Task:
        """Make a document of about `length` tokens, not counting the question; equal arguments give equal documents.

        The facts are inserted at random places, in order, among consecutive sentences of a novel, which begin at a
        random one and continue from the novel's beginning after its end. If the facts alone are longer than `length`,
        the document has no sentences of the novel.

        Args:
            name: name of the task: `passkey`, or `babilong-qa1` to `babilong-qa5`.
            length: tokens of the document.
            seed: seed of the random choices.
        """
        random = Random(f"{name} {length} {seed}")
        story = TASKS[name](random)
        left = length - sum(self.count(f" {fact}") for fact in story.facts)
        at, chosen = random.randrange(len(self.sentences)), list[str]()
        while (left := left - self.sizes[at]) >= 0:
            chosen.append(self.sentences[at])
            at = (at + 1) % len(self.sentences)
        places = sorted(random.randint(0, len(chosen)) for _ in story.facts)
        for number, place in reversed(list(enumerate(places))):
            chosen.insert(place, story.facts[number])
        before = sum(len(sentence) + 1 for sentence in chosen[: places[story.told] + story.told])
        text = " ".join(chosen)
        return Task(text, f" Question: {story.question} Answer:", story, before / len(text))
