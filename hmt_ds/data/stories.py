"""Short stories of a simulated world, with a question and its answer, in the manner of bAbI's tasks 1 to 5.

Stories are made by drawing random events, so no data set is needed. The wording is that of bAbI (Weston et al., arXiv
1502.05698), so that BABILong's scores apply.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

PEOPLE = ("Mary", "John", "Daniel", "Sandra")
PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
THINGS = ("apple", "football", "milk")
GO = ("moved to", "went to", "journeyed to", "travelled to", "went back to")
TAKE = ("took", "got", "grabbed", "picked up")
DROP = ("dropped", "discarded", "put down", "left")
GIVE = ("gave", "handed", "passed")
DIRECTIONS = {"north": "south", "south": "north", "east": "west", "west": "east"}


@dataclass(frozen=True)
class Story:
    """A few generated facts and a question about them, in the manner of bAbI.

    Attributes:
        facts: sentences, in the order in which a document has them.
        question: the question, without its answer.
        answer: the right answer, one word.
        told: index in `facts` of the last fact that the answer needs.
        labels: all words that could be answers to such a question; empty if any word could be.
    """

    facts: list[str]
    question: str
    answer: str
    told: int
    labels: tuple[str, ...]


class World:
    """A simulated world of people who walk, take things and drop them; every event appends a sentence to `facts`.

    Args:
        random: source of the random choices.

    Attributes:
        facts: sentences so far.
        where: for each person, the last place, and the index of the sentence that says so.
        holder: for each thing that is carried, the person who carries it.
        trail: for each thing, the places that it was in, each with the index of the sentence from which that follows.
    """

    def __init__(self, random: Random):
        self.random = random
        self.facts: list[str] = []
        self.where: dict[str, tuple[str, int]] = {}
        self.holder: dict[str, str] = {}
        self.trail: dict[str, list[tuple[str, int]]] = {thing: [] for thing in THINGS}

    def tell(self, sentence: str) -> int:
        """Append a sentence to the simulated world's facts; return its index.

        Args:
            sentence: the sentence.
        """
        self.facts.append(sentence)
        return len(self.facts) - 1

    def go(self) -> None:
        """Simulate one event: a random person walks to another place, with everything that the person carries."""
        person = self.random.choice(PEOPLE)
        here = self.where.get(person, ("", 0))[0]
        place = self.random.choice([place for place in PLACES if place != here])
        number = self.tell(f"{person} {self.random.choice(GO)} the {place}.")
        self.where[person] = place, number
        for thing in [thing for thing, holder in self.holder.items() if holder == person]:
            self.trail[thing].append((place, number))

    def handle(self) -> None:
        """Simulate one event: a random person drops a carried thing, or takes one that nobody carries.

        Nothing happens if the drawn person and thing are not in the same place.
        """
        person = self.random.choice([person for person in PEOPLE if person in self.where] or [""])
        thing = self.random.choice(THINGS)
        if self.holder.get(thing):
            person = self.holder.pop(thing)
            self.tell(f"{person} {self.random.choice(DROP)} the {thing}.")
        elif person and self.trail[thing][-1:] in ([], [(self.where[person][0], last(self.trail[thing]))]):
            place, _ = self.where[person]
            number = self.tell(f"{person} {self.random.choice(TAKE)} the {thing} there.")
            self.holder[thing] = person
            if not self.trail[thing]:
                self.trail[thing].append((place, number))

    def happen(self, events: int) -> None:
        """Simulate random events until the world has a given number of facts: about two walks per thing taken or
        dropped.

        Args:
            events: number of sentences in `facts` at the end.
        """
        while len(self.facts) < events:
            self.go() if self.random.random() < 0.66 else self.handle()


def last(trail: list[tuple[str, int]]) -> int:
    """Return the index of the sentence that says where a thing is; -1 if none does.

    Args:
        trail: the places that the thing was in, each with the index of the sentence that says so.
    """
    return trail[-1][1] if trail else -1


def where_is_a_person(random: Random) -> Story:
    """Make a random story of bAbI's task 1, whose question needs one fact: Where is Mary?

    Args:
        random: source of the random choices.
    """
    world = World(random)
    for _ in range(random.randint(2, 10)):
        world.go()
    person = random.choice(sorted(world.where))
    place, told = world.where[person]
    return Story(world.facts, f"Where is {person}?", place, told, PLACES)


def where_is_a_thing(random: Random) -> Story:
    """Make a random story of bAbI's task 2, whose question needs two facts: Where is the football?

    Args:
        random: source of the random choices.
    """
    while True:
        world = World(random)
        world.happen(random.randint(4, 16))
        if known := [thing for thing in THINGS if world.trail[thing]]:
            thing = random.choice(known)
            place, told = world.trail[thing][-1]
            return Story(world.facts, f"Where is the {thing}?", place, told, PLACES)


def where_was_a_thing(random: Random) -> Story:
    """Make a random story of bAbI's task 3, whose question needs three facts: Where was the football before the
    kitchen?

    Args:
        random: source of the random choices.
    """
    while True:
        world = World(random)
        world.happen(random.randint(8, 24))
        if moved := [thing for thing in THINGS if len(world.trail[thing]) > 1]:
            thing = random.choice(moved)
            (before, _), (place, told) = world.trail[thing][-2:]
            return Story(world.facts, f"Where was the {thing} before the {place}?", before, told, PLACES)


def what_is_beside(random: Random) -> Story:
    """Make a random story of bAbI's task 4, about the positions of two places: What is the bedroom north of?

    Args:
        random: source of the random choices.
    """
    one, middle, other = random.sample(PLACES, 3)
    there = random.choice(sorted(DIRECTIONS))
    back = DIRECTIONS[there]
    facts = [f"The {one} is {there} of the {middle}.", f"The {middle} is {there} of the {other}."]
    kinds = [
        (f"What is {there} of the {middle}?", one, facts[0]),
        (f"What is the {middle} {there} of?", other, facts[1]),
        (f"What is {back} of the {middle}?", other, facts[1]),
        (f"What is the {middle} {back} of?", one, facts[0]),
    ]
    question, answer, fact = random.choice(kinds)
    random.shuffle(facts)
    return Story(facts, question, answer, facts.index(fact), PLACES)


def who_gave_what(random: Random) -> Story:
    """Make a random story of bAbI's task 5, about a giver, a thing and a receiver: Who gave the milk to John?

    Args:
        random: source of the random choices.
    """
    world = World(random)
    for _ in range(random.randint(1, 5)):
        world.go()
    for _ in range(random.randint(1, 3)):
        giver, taker = random.sample(PEOPLE, 2)
        thing = random.choice(THINGS)
        told = world.tell(f"{giver} {random.choice(GIVE)} the {thing} to {taker}.")
    for _ in range(random.randint(0, 4)):
        world.go()
    question, answer = random.choice(
        [
            (f"Who gave the {thing} to {taker}?", giver),
            (f"Who did {giver} give the {thing} to?", taker),
            (f"What did {giver} give to {taker}?", thing),
            (f"Who received the {thing}?", taker),
        ]
    )
    # about the last gift, so that earlier ones of the same thing or between the same people mislead and do not count
    return Story(world.facts, question, answer, told, PEOPLE + THINGS)


def pass_key(random: Random) -> Story:
    """Make a random story with the pass key of Mohtashami and Jaggi (arXiv 2305.16300): one number, told once.

    Args:
        random: source of the random choices.
    """
    key = str(random.randint(10_000, 99_999))
    fact = f"The pass key is {key}. Remember it. {key} is the pass key."
    return Story([fact], "What is the pass key?", key, 0, ())


TASKS: dict[str, Callable[[Random], Story]] = {
    "passkey": pass_key,
    "babilong-qa1": where_is_a_person,
    "babilong-qa2": where_is_a_thing,
    "babilong-qa3": where_was_a_thing,
    "babilong-qa4": what_is_beside,
    "babilong-qa5": who_gave_what,
}
# a guess: among the places, or for task 5 among the people or the things, as the question says
CHANCE = {"passkey": 1 / 90_000, "babilong-qa5": 1 / 4} | {f"babilong-qa{n}": 1 / len(PLACES) for n in range(1, 5)}
