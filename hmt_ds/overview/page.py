"""The building blocks of a report's HTML page, which ``report.html.j2`` lays out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2

from hmt_ds.config.config_error import ConfigError

TEMPLATE = Path(__file__).with_name("report.html.j2")


@dataclass(frozen=True)
class Picture:
    """A captioned picture on a report's page; either ``svg`` or ``image`` is set.

    Attributes:
        caption: what the picture shows.
        svg: an SVG element.
        image: a ``data:`` URL of an image.
    """

    caption: str
    svg: str = ""
    image: str = ""


@dataclass(frozen=True)
class Table:
    """A table of text on a report's page.

    Attributes:
        head: titles of the columns.
        rows: cells; the first cell of each row is its title.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Folded:
    """Text on a report's page that is hidden until the reader opens it, and shown in print.

    Attributes:
        title: title that the reader clicks.
        text: the text.
    """

    title: str
    text: str


@dataclass
class Section:
    """A section of a report's page.

    Attributes:
        title: the heading.
        notes: sentences below the heading.
        pictures, tables, folded: the parts, in the order shown.
    """

    title: str
    notes: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    folded: list[Folded] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Whether the section has nothing to show, so that the page leaves it out."""
        return not (self.notes or self.pictures or self.tables or self.folded)

    @property
    def anchor(self) -> str:
        """The section's ``id`` in the page, for links to it."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.title.lower())


def render(title: str, written: str, sections: Sequence[Section]) -> str:
    """Return a report's page as HTML that needs no other file.

    Args:
        title: title of the page.
        written: when and by which version the page was written.
        sections: sections of the page; empty ones are left out.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    shown = [section for section in sections if not section.empty]
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(title=title, written=written, sections=shown)


def write_page(file: Path, page: str, option: str) -> None:
    """Write an HTML page completely, or not at all if that fails.

    Args:
        file: path of the page.
        page: content of the page.
        option: command-line option that names the file, for the error.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_suffix(".part")
        aside.write_text(page, encoding="utf-8")
        aside.replace(file)
    except OSError as error:
        problem = f"{option}: {file} cannot be written: {error.strerror}: name a file where you may write"
        raise ConfigError([problem]) from None
