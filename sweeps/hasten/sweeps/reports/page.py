"""A report as one HTML page that needs no network.

It opens from disk and inside a sandboxed frame: script, data and pictures are in it, and its own security
policy forbids any request. Everything that a user may have written is escaped.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

import vl_convert
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from hasten.sweeps.reports import charts
from hasten.sweeps.reports.charts import Figure
from hasten.sweeps.reports.document import Document


@dataclass(frozen=True, slots=True, kw_only=True)
class _Numbered:
    """Figures by the names of their places in the page: two studies on one page have one of each kind."""

    places: dict[int, str] = field(default_factory=dict)

    def __call__(self, figure: Figure) -> str:
        return self.places.setdefault(id(figure), f"figure-{figure.name}-{len(self.places)}")


def html(documents: Sequence[Document], *, title: str, pictures: Mapping[str, bytes] | None = None) -> str:
    """The page of one report, or of several below each other, the first of them introducing the rest.

    ``pictures`` are PNG files of figures, by name, for readers without scripts.
    """
    place = _Numbered()
    figures = {place(figure): figure for document in documents for figure in document.figures}
    # One script block can be ended from within: the text must not hold its closing tag.
    bundle = Markup(_bundle().replace("</script", "<\\/script")) if figures else ""
    text: str = _template().render(
        title=title,
        documents=documents,
        kind=lambda block: type(block).__name__,
        place=place,
        pictures={name: _data_uri(png) for name, png in (pictures or {}).items()},
        figures={key: _plain(figure) for key, figure in figures.items()},
        looks={"light": charts.look(dark=False), "dark": charts.look(dark=True)},
        bundle=bundle,
    )
    return text


def _plain(figure: Figure) -> dict[str, Any]:
    return {"views": [list(view) for view in figure.views.values()], "data": figure.data}


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{b64encode(png).decode()}"


@cache
def _bundle() -> str:
    """Vega, Vega-Lite and vega-embed as one script; making it takes a second."""
    script: str = vl_convert.javascript_bundle()
    return script


@cache
def _template() -> Any:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(
        files("hasten.sweeps.reports").joinpath("report.html.j2").read_text("utf-8")
    )
