"""Render a preview of training documents as an HTML page that needs no other file (template: ``preview.html.j2``)."""

from collections.abc import Sequence
from pathlib import Path

import jinja2

from hmt_ds.preview.view import Bar, Shown

TEMPLATE = Path(__file__).with_name("preview.html.j2")


def render(title: str, summary: str, bars: Sequence[Bar], documents: Sequence[Shown]) -> str:
    """Return a preview of training documents as an HTML page.

    Args:
        title: title of the page.
        summary: a sentence with the numbers of documents and tokens.
        bars: histogram of document lengths; empty if lengths are not known.
        documents: the documents to show.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    weights = sorted(set().union(*(document.weights for document in documents)))
    return template.render(title=title, summary=summary, bars=bars, documents=documents, weights=weights)
