"""The parts that a report's page consists of; ``report.html.j2`` lays them out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2

TEMPLATE = Path(__file__).with_name("report.html.j2")


@dataclass(frozen=True)
class Picture:
    """A picture with a caption.

    Attributes:
        caption: what it shows.
        svg: an SVG element; or empty, if ``image`` is set.
        image: a data address of a picture.
    """

    caption: str
    svg: str = ""
    image: str = ""


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        head: titles of the columns.
        rows: cells; the first of each row is its title.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Folded:
    """Text that is shown on demand, and in print.

    Attributes:
        title: what it is.
        text: the text.
    """

    title: str
    text: str


@dataclass
class Section:
    """A section of the page.

    Attributes:
        title: its heading.
        notes: sentences below the heading.
        pictures, tables, folded: its parts, in this order.
    """

    title: str
    notes: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    folded: list[Folded] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.notes or self.pictures or self.tables or self.folded)

    @property
    def anchor(self) -> str:
        """The name of the section in addresses."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.title.lower())


def render(title: str, written: str, sections: Sequence[Section]) -> str:
    """Return the page: HTML that needs no other file."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    shown = [section for section in sections if not section.empty]
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(title=title, written=written, sections=shown)
