"""A page for people: one HTML file that makes no request and can be read from disk years later."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, ClassVar, Union

from markupsafe import Markup

from isospike.report.drawing import draw
from isospike.report.figures import Figure
from isospike.report.table import Table

if TYPE_CHECKING:
    import jinja2

Block = Union[str, "Note", "Items", "Details", "Grid", "Drawing", "Slider", Table, Figure]
"""A part of a section. Text is escaped; a :class:`markupsafe.Markup` is written as it is."""


@dataclass(frozen=True)
class Note:
    """A paragraph set apart.

    Attributes:
        text: Of the paragraph.
        tone: ``fine`` (small print), ``aside`` (worth knowing) or ``warn``.
    """

    kind: ClassVar[str] = "note"

    text: str
    tone: str = "fine"


@dataclass(frozen=True)
class Items:
    """A list.

    Attributes:
        texts: Of the items.
        numbered: Whether they are counted.
    """

    kind: ClassVar[str] = "items"

    texts: tuple[str, ...]
    numbered: bool = False


@dataclass(frozen=True)
class Details:
    """Blocks that are shown on demand.

    Attributes:
        summary: What is behind it.
        blocks: Shown when it is opened.
    """

    kind: ClassVar[str] = "details"

    summary: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Grid:
    """Blocks side by side, as many in a row as there is room for.

    Attributes:
        blocks: From left to right.
        width: Least width of each, in pixels.
    """

    kind: ClassVar[str] = "grid"

    blocks: tuple[Block, ...]
    width: int = 380


@dataclass(frozen=True)
class Drawing:
    """An SVG element of our own making; texts from outside must be escaped in it.

    Attributes:
        svg: The element.
    """

    kind: ClassVar[str] = "drawing"

    svg: Markup


@dataclass(frozen=True)
class Slider:
    """A choice of one of several numbers, and what each of them comes to.

    Attributes:
        label: What is chosen.
        options: Cards of each choice, value by name, by the choice's own name.
        start: The one that is shown first.
    """

    kind: ClassVar[str] = "slider"

    label: str
    options: Mapping[str, Mapping[str, str]]
    start: str


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        heading: Its heading.
        meaning: One paragraph: what it shows and how to read it.
        blocks: What it shows.

    >>> Section("Cost", "What it costs.").heading
    'Cost'
    """

    heading: str
    meaning: str
    blocks: tuple[Block, ...] = ()


def legend(colours: Mapping[str, str], dashed: Collection[str] = ()) -> Note:
    """The colours of several figures, explained once.

    Args:
        colours: Colour of each line, by its name.
        dashed: Names of the lines that are dashed.

    Returns:
        A paragraph for the section, above its figures.
    """
    marks = (
        Markup('<span class="key">{} {}</span>').format(swatch(colour, name in dashed), name)
        for name, colour in colours.items()
    )
    return Note(Markup(" &nbsp; ").join(marks))


def swatch(colour: str, dashed: bool = False) -> Markup:
    """A short line of a colour, for a text that speaks of it.

    Args:
        colour: Of the line.
        dashed: Whether it has gaps.

    Returns:
        The element.
    """
    style = "dashed" if dashed else "solid"
    return Markup('<i class="swatch" style="border-top:3px {} {}"></i>').format(style, colour)


def render(
    title: str,
    *,
    verdict: str = "",
    warnings: Sequence[str] = (),
    cards: Mapping[str, str] | None = None,
    sections: Sequence[Section] = (),
    footer: Sequence[str] = (),
) -> str:
    """The page as HTML.

    Args:
        title: Heading of the page.
        verdict: What was found, in one or two sentences.
        warnings: What to beware of, a paragraph each.
        cards: Value by name; further lines of a value are small print.
        sections: The page's parts.
        footer: Small print at the end, a line each.

    Returns:
        The page. Every text is escaped. Figures are drawn; scripts only save them, show their
        numbers and move sliders. An error in one of them is added to the attribute
        ``data-errors`` of the root element.
    """
    return _template("page.html").render(
        title=title, verdict=verdict, warnings=warnings, cards=cards or {}, sections=sections,
        footer=footer,
    )  # fmt: skip


@cache
def _template(name: str) -> "jinja2.Template":
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["draw"] = draw
    environment.filters["json"] = lambda value: json.dumps(value, allow_nan=False)
    text = files("isospike.report").joinpath(name).read_text(encoding="utf-8")
    return environment.from_string(text)
