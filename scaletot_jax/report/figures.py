"""Charts as inline SVG: curves, bars, intervals, before and after, distributions.

Each function returns a ``figure`` whose SVG is one image with a name and a description for assistive technology. Colours
come from the page's style sheet, so that they follow dark mode and print. Equal input gives equal bytes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from scaletot_jax.report.page import Markup, el, number

WIDTH = 400  # units of every chart; a phone shows about one unit a pixel, so 12-unit text stays readable
_LETTER = 6.4  # mean width of a character of 12-unit text


class Series(NamedTuple):
    """One curve: ``x`` and ``y`` of equal length; None in ``y`` breaks the line."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]


def figure(title: str, drawing: object, caption: object = "", *, legend: Sequence[str] = ()) -> Markup:
    """A drawing with its heading, the names of its colours and a caption."""
    names = [el("li", _swatch(i), name) for i, name in enumerate(legend, 1)]
    keys = el("ul", names, class_="legend") if names else None
    return el("figure", el("h3", title), drawing, keys, el("figcaption", caption) if caption else None)


def drawing(height: float, name: str, description: str, *children: object) -> Markup:
    """An SVG of ``WIDTH`` × ``height`` units that reads as one image."""
    return el(
        "svg",
        el("title", name),
        el("desc", description),
        children,
        viewBox=f"0 0 {WIDTH} {height:g}",
        role="img",
        aria_label=f"{name}. {description}",
    )


def curves(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    caption: object = "",
    reference: tuple[str, float] | None = None,
    digits: int = 3,
) -> Markup:
    """Lines over a common x axis, thinned to at most 160 means of neighbouring points; a reference line where given."""
    series = [_thin(line) for line in series]
    values = [v for line in series for v in line.y if v is not None] + ([reference[1]] if reference else [])
    steps = [x for line in series for x in line.x]
    if not values:
        return figure(title, el("p", "No values were logged.", class_="absent"), caption)
    ticks = nice_ticks(min(values), max(values), 4)
    left = 14 + _LETTER * max(len(number(tick, _decimals(ticks))) for tick in ticks)
    top, bottom, right, height = 10.0, 196.0, WIDTH - 8.0, 236
    low, high = min(ticks[0], *values), max(ticks[-1], *values)
    first, last = min(steps), max(steps)

    def px(x: float) -> float:
        return left + (right - left) * ((x - first) / (last - first) if last > first else 0.5)

    def py(y: float) -> float:
        return bottom - (bottom - top) * ((y - low) / (high - low) if high > low else 0.5)

    shapes: list[object] = []
    for tick in ticks:
        shapes.append(el("line", x1=left, x2=right, y1=py(tick), y2=py(tick), class_="tick"))
        shapes.append(_label(left - 8, py(tick) + 4, number(tick, _decimals(ticks)), "end"))
    for step in dict.fromkeys((first, last)):
        shapes.append(
            _label(
                px(step), bottom + 18, f"{step:g}", "middle" if first == last else "start" if step == first else "end"
            )
        )
    shapes.append(_label((left + right) / 2, bottom + 18, x_label, "middle"))
    if reference:
        shapes.append(el("line", x1=left, x2=right, y1=py(reference[1]), y2=py(reference[1]), class_="zero"))
        shapes.append(_label(right, py(reference[1]) - 5, reference[0], "end"))
    for i, line in enumerate(series, 1):
        shapes.append(
            el(
                "path",
                d=_path([(px(x), None if y is None else py(y)) for x, y in zip(line.x, line.y)]),
                class_=f"curve s{i}",
            )
        )
        if len([y for y in line.y if y is not None]) == 1:
            shapes += [
                el("circle", cx=px(x), cy=py(y), r=4, class_=f"f{i}") for x, y in zip(line.x, line.y) if y is not None
            ]
    spoken = "; ".join(f"{line.name} from {_say(line.y, digits)}" for line in series)
    return figure(
        title,
        drawing(height, title, f"{spoken}, over {x_label} {first:g} to {last:g}.", shapes),
        caption,
        legend=[line.name for line in series] if len(series) > 1 else (),
    )


def bars(title: str, rows: Sequence[tuple[str, float, object]], *, caption: object = "") -> Markup:
    """Horizontal bars with a common zero. ``rows``: name, value ≥ 0, the value as it is shown."""
    most = max((value for _, value, _ in rows), default=0) or 1
    shapes: list[object] = []
    for i, (name, value, shown) in enumerate(rows):
        y = 44 * i
        shapes += [
            _label(0, y + 14, name, "start", "strong"),
            _label(WIDTH, y + 14, shown, "end", "strong"),
            el("rect", x=0, y=y + 21, width=WIDTH, height=9, rx=2, class_="back"),
            el(
                "rect", x=0, y=y + 21, width=max(WIDTH * value / most, 1.5 if value else 0), height=9, rx=2, class_="f1"
            ),
        ]
    spoken = "; ".join(f"{name}: {shown}" for name, _, shown in rows)
    return figure(title, drawing(44 * len(rows), title, spoken + ".", shapes), caption)


def intervals(
    title: str, rows: Sequence[tuple[str, Mapping[str, Any]]], *, caption: object = "", digits: int = 3
) -> Markup:
    """Estimates with their intervals around a zero line. ``rows``: name, {"estimate", "low", "high"} (any may be None)."""
    found = [v for _, row in rows for v in (row.get("low"), row.get("estimate"), row.get("high")) if v is not None]
    ticks = nice_ticks(min([*found, 0.0]), max([*found, 0.0]), 4)
    low, high = min([ticks[0], *found]), max([ticks[-1], *found])

    def px(x: float) -> float:
        return 10 + (WIDTH - 20) * (x - low) / (high - low)

    height = 40 * len(rows)
    shapes: list[object] = []
    for tick in ticks:
        shapes.append(el("line", x1=px(tick), x2=px(tick), y1=0, y2=height, class_="zero" if tick == 0 else "tick"))
        shapes.append(_label(px(tick), height + 17, number(tick, _decimals(ticks), sign=bool(tick)), _side(px(tick))))
    spoken = []
    for i, (name, row) in enumerate(rows):
        y = 40 * i + 28
        estimate, left, right = row.get("estimate"), row.get("low"), row.get("high")
        shapes.append(_label(0, y - 13, name, "start", "strong"))
        if estimate is None:
            shapes.append(_label(WIDTH, y - 13, "not available", "end"))
            spoken.append(f"{name}: not available")
            continue
        shapes.append(_label(WIDTH, y - 13, number(estimate, digits, sign=True), "end", "strong"))
        between = ""
        if left is not None and right is not None:
            shapes.append(el("path", d=f"M{px(left):.1f} {y}H{px(right):.1f}", class_="curve s1"))
            between = f", interval {number(left, digits)} to {number(right, digits)}"
        shapes.append(el("circle", cx=px(estimate), cy=y, r=4.5, class_="f1"))
        spoken.append(f"{name}: {number(estimate, digits, sign=True)}{between}")
    return figure(title, drawing(height + 22, title, "; ".join(spoken) + ".", shapes), caption)


def before_after(
    title: str, rows: Sequence[tuple[str, float | None, float | None]], names: tuple[str, str], *, caption: object = ""
) -> Markup:
    """Two values a row, joined by a line, on a common axis from zero."""
    most = nice_ticks(0.0, max([v for _, *pair in rows for v in pair if v is not None] or [1.0]), 4)
    shapes: list[object] = []
    height = 38 * len(rows)

    def px(x: float) -> float:
        return 8 + (WIDTH - 16) * x / most[-1]

    for tick in most:
        shapes.append(el("line", x1=px(tick), x2=px(tick), y1=0, y2=height, class_="tick"))
        shapes.append(_label(px(tick), height + 16, number(tick, _decimals(most)), _side(px(tick))))
    spoken = []
    for i, (name, before, after) in enumerate(rows):
        y = 38 * i + 26
        shapes.append(_label(0, y - 11, name, "start", "strong"))
        if before is not None and after is not None:
            shapes.append(el("line", x1=px(before), x2=px(after), y1=y, y2=y, class_="edge"))
        if before is not None:
            shapes.append(el("circle", cx=px(before), cy=y, r=4.5, class_="f2"))
        if after is not None:
            shapes.append(el("circle", cx=px(after), cy=y, r=4.5, class_="f1"))
        spoken.append(f"{name}: {number_text(before)} then {number_text(after)}")
    keys = el("ul", el("li", _swatch(2), names[0]), el("li", _swatch(1), names[1]), class_="legend")
    image = drawing(height + 22, title, f"{names[0]}, then {names[1]}. " + "; ".join(spoken) + ".", shapes)
    return figure(title, [image, keys], caption)


def distributions(
    title: str, categories: Sequence[str], series: Sequence[tuple[str, Sequence[float]]], *, caption: object = ""
) -> Markup:
    """Probabilities of ordered categories, side by side."""
    most = max([p for _, values in series for p in values] or [1.0]) or 1.0
    base, cell = 118.0, WIDTH / max(len(categories), 1)
    width = min(cell * 0.8 / max(len(series), 1), 22)
    shapes: list[object] = [el("line", x1=0, x2=WIDTH, y1=base, y2=base, class_="axis")]
    for i, name in enumerate(categories):
        middle = cell * (i + 0.5)
        shapes.append(_label(middle, base + 17, name, "middle"))
        for j, (_, values) in enumerate(series):
            tall = 96 * values[i] / most
            x = middle + (j - len(series) / 2) * width
            shapes.append(
                el("rect", x=x + 0.5, y=base - tall, width=width - 1, height=tall, rx=1.5, class_=f"f{j + 1}")
            )
        best = max((values[i] for _, values in series), default=0)
        shapes.append(_label(middle, base - 96 * best / most - 5, f"{100 * best:.0f} %", "middle"))
    spoken = "; ".join(
        f"{name}: " + ", ".join(f"{c} {100 * p:.0f} %" for c, p in zip(categories, values)) for name, values in series
    )
    return figure(
        title,
        drawing(base + 24, title, spoken + ".", shapes),
        caption,
        legend=[s[0] for s in series] if len(series) > 1 else (),
    )


# -- axes and marks -----------------------------------------------------------------------------------------------------


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """At most ``count`` + 2 round values 1, 2 or 5 × 10ⁿ apart that cover [low, high]."""
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-3):  # nothing to see: room around the one value
        margin = abs(low) * 0.1 if abs(low) > 1e-9 else 1.0
        low, high = low - margin, high + margin
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * (1 - 1e-9))
    begin, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(begin, end + 1)]


def number_text(value: float | None, digits: int = 3) -> str:
    """A number for spoken descriptions."""
    return "not available" if value is None else str(number(float(value), digits))


def _decimals(ticks: Sequence[float]) -> int:
    step = min((b - a for a, b in itertools.pairwise(ticks)), default=1.0)
    return max(0, min(6, -math.floor(math.log10(step) + 1e-9)))


def _thin(line: Series, most: int = 160) -> Series:
    size = math.ceil(len(line.x) / most)
    if size <= 1:
        return line
    xs, ys = [], []
    for begin in range(0, len(line.x), size):
        values = [y for y in line.y[begin : begin + size] if y is not None]
        part = line.x[begin : begin + size]
        xs.append(sum(part) / len(part))
        ys.append(sum(values) / len(values) if values else None)
    return Series(line.name, xs, ys)


def _path(points: Sequence[tuple[float, float | None]]) -> str:
    out, pen = [], "M"
    for x, y in points:
        if y is None:
            pen = "M"
            continue
        out.append(f"{pen}{x:.1f} {y:.1f}")
        pen = "L"
    return "".join(out)


def _say(values: Sequence[float | None], digits: int) -> str:
    found = [v for v in values if v is not None]
    return f"{number_text(found[0], digits)} to {number_text(found[-1], digits)}" if found else "no values"


def _label(x: float, y: float, content: object, anchor: str, kind: str | None = None) -> Markup:
    return el("text", content, x=x, y=y, text_anchor=None if anchor == "start" else anchor, class_=kind)


def _side(x: float) -> str:
    return "start" if x < 14 else "end" if x > WIDTH - 14 else "middle"


def _swatch(index: int) -> Markup:
    return el(
        "svg",
        el("rect", x=0, y=4, width=18, height=4, rx=2, class_=f"f{index}"),
        viewBox="0 0 18 12",
        aria_hidden="true",
    )
