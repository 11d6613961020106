"""Plots by matplotlib as part of a page: SVG in which text is text and every colour is the page's own.

matplotlib draws with the stand-in colours of :data:`COLOURS`; in the SVG each becomes the style sheet's variable of that
name, so that one drawing serves light, dark and print. Fonts are the page's, inline styles become attributes (the page's
security policy allows none), markers are written out where they stand, and nothing carries an id: any number of drawings
may stand in one document. Equal input gives equal bytes. matplotlib is imported when something is drawn.
"""

from __future__ import annotations

import contextlib
import html
import io
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any
from xml.etree import ElementTree

from scaletot_jax.report.page import Markup, clean, el

WIDTH = 400  # units of every drawing; a phone shows about one unit a pixel, so 12-unit text stays readable
TEXT = 12
COLOURS = {
    name: f"#{number:06x}"
    for number, name in enumerate(("ink", "soft", "line", "card", "wash", "c1", "c2", "c3", "c4", "c5"), 0x0A0B01)
}
_VARIABLES = {code: f"var(--{name})" for name, code in COLOURS.items()}
_PAINT = (
    "fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linecap", "stroke-linejoin", "opacity", "fill-opacity",
    "stroke-opacity", "text-anchor", "font-size", "font-weight",
)  # fmt: skip
_PLACE = ("d", "x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "r", "width", "height", "transform")
_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """matplotlib's settings while a drawing is made: text stays text, a dollar sign is no formula."""
    import matplotlib

    settings: Any = {  # matplotlib's type for it names every key there is
        "svg.fonttype": "none",
        "text.parse_math": False,
        "font.size": TEXT,
        "text.color": COLOURS["ink"],
        "axes.unicode_minus": True,
        "path.simplify": False,
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the page's font draws it
        yield


def canvas(height: float) -> tuple[Any, Any]:
    """A figure of :data:`WIDTH` × ``height`` units and axes over all of it whose coordinates are these units, y downwards."""
    figure, axes = framed(height, left=0, right=0, top=0, bottom=0)
    axes.set_axis_off()
    axes.set(xlim=(0, WIDTH), ylim=(max(height, 1), 0))
    return figure, axes


def framed(height: float, *, left: float, right: float = 8, top: float = 10, bottom: float = 40) -> tuple[Any, Any]:
    """A figure and axes with these margins, in units; light horizontal rules and no frame."""
    from matplotlib.figure import Figure

    height = max(height, 1)
    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
    figure.patch.set_visible(False)
    box = (left / WIDTH, bottom / height, (WIDTH - left - right) / WIDTH, (height - top - bottom) / height)
    axes = figure.add_axes(box)
    axes.patch.set_visible(False)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=COLOURS["line"], linewidth=1, clip_on=False)
    axes.tick_params(length=0, pad=6, labelsize=TEXT, labelcolor=COLOURS["soft"])
    return figure, axes


def plain(value: object) -> str:
    """What is written into a drawing: one line of text without markup or characters that a page cannot carry."""
    shown = html.unescape(re.sub("<[^>]+>", "", value)) if isinstance(value, Markup) else str(value)
    return " ".join(clean(shown).split())


def write(
    axes: Any, x: float, y: float, value: object, *, anchor: str = "start", bold: bool = False, colour: str = "soft"
) -> None:
    """Text at (x, y), its baseline there. ``anchor``: start, middle or end."""
    align = {"start": "left", "middle": "center", "end": "right"}[anchor]
    axes.text(x, y, plain(value), ha=align, va="baseline", color=COLOURS["ink" if bold else colour], clip_on=False)


def svg(figure: Any, name: str, description: str) -> Markup:
    """The drawing as one image with a name and a description for assistive technology."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    FigureCanvasSVG(figure).print_svg(buffer, metadata=nothing)
    root = ElementTree.fromstring(buffer.getvalue())
    markers = {f"#{node.get('id')}": node for node in root.iter(f"{_SVG}path") if node.get("id")}
    return el(
        "svg",
        el("title", name),
        el("desc", description),
        [_element(child, markers) for child in root],
        viewBox=root.get("viewBox"),
        role="img",
        aria_label=f"{name}. {description}",
    )


def _element(node: ElementTree.Element, markers: Mapping[str, ElementTree.Element]) -> object:
    tag = node.tag.removeprefix(_SVG)
    if tag == "g":
        return [_element(child, markers) for child in node]
    if tag == "use":
        marker = markers[node.attrib[_LINK]]
        style = {**_style(marker), **_style(node)}
        moved = f"translate({_short(node.get('x', '0'))} {_short(node.get('y', '0'))})"
        return el("path", d=_short(marker.get("d", "")), transform=moved, **style)
    if tag not in ("path", "text", "rect", "circle", "line"):
        return None  # definitions, metadata
    place = {name: _short(node.attrib[name]) for name in _PLACE if name in node.attrib}
    if place.get("transform", "").startswith("rotate(-0 "):
        del place["transform"]
    return el(tag, node.text if tag == "text" else None, **place, **_style(node))


def _style(node: ElementTree.Element) -> dict[str, str]:
    """The inline style as attributes, its stand-in colours as variables; families of fonts are left to the page."""
    found = dict(part.strip().split(": ", 1) for part in node.get("style", "").split(";") if ": " in part)
    out = {name: _VARIABLES.get(found[name], found[name]) for name in _PAINT if name in found}
    if "font-size" in out:
        out["font-size"] = out["font-size"].removesuffix("px")
    return out


def _short(value: str) -> str:
    """Numbers of a path with two decimals at most."""
    rounded = re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), value)
    return " ".join(rounded.split())
