"""The report's charts: curves, bars, intervals, before and after, distributions, calibration, coverage.

Each function returns a ``figure`` whose drawing (:mod:`scaletot_jax.report.plots`) has a name and a description for
assistive technology.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from scaletot_jax.report.page import Markup, el, number, p_value
from scaletot_jax.report.plots import COLOURS, WIDTH, canvas, framed, plain, styled, svg, write

_LETTER = 6.4  # mean width of a character of 12-unit text


class Series(NamedTuple):
    """One curve: ``x`` and ``y`` of equal length; None in ``y`` breaks the line."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]


def figure(title: str, drawing: object, caption: object = "", *, legend: Sequence[str] = (), level: int = 3) -> Markup:
    """A drawing with its heading (``level``), the names of its colours and a caption."""
    names = [el("li", swatch(i), name) for i, name in enumerate(legend, 1)]
    keys = el("ul", names, class_="legend") if names else None
    return el("figure", el(f"h{level}", title), drawing, keys, el("figcaption", caption) if caption else None)


def swatch(index: int) -> Markup:
    """The colour of a series, for a legend."""
    mark = el("rect", x=0, y=4, width=18, height=4, rx=2, class_=f"f{index}")
    return el("svg", mark, viewBox="0 0 18 12", aria_hidden="true")


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
    series = [thin(line) for line in series]
    values = [v for line in series for v in line.y if v is not None] + ([reference[1]] if reference else [])
    steps = [x for line in series for x in line.x]
    if not values:
        return figure(title, el("p", "No values were logged.", class_="absent"), caption)
    with styled():
        ticks = nice(min(values), max(values))
        drawing, axes = framed(236, left=_room(ticks))
        for i, line in enumerate(series, 1):
            known = [math.nan if y is None else y for y in line.y]
            alone = sum(y is not None for y in line.y) == 1
            axes.plot(line.x, known, color=COLOURS[f"c{i}"], linewidth=2, marker="o" if alone else None, clip_on=False)
        if reference:
            axes.axhline(reference[1], color=COLOURS["soft"], linewidth=1, linestyle=(0, (3, 3)), clip_on=False)
            write(axes, max(steps), reference[1], reference[0], anchor="end")
        first, last = min(steps), max(steps)
        margin = 0 if last > first else 1
        axes.set(xlim=(first - margin, last + margin), ylim=(min(ticks[0], *values), max(ticks[-1], *values)))
        _ticks(axes.yaxis, ticks)
        shown = dict.fromkeys((first, last))
        axes.set_xticks(list(shown), [f"{step:g}" for step in shown])
        _hang(axes)
        axes.set_xlabel(x_label, color=COLOURS["soft"], labelpad=-10)
        spoken = "; ".join(f"{line.name} from {_say(line.y, digits)}" for line in series)
        image = svg(drawing, title, f"{spoken}, over {x_label} {first:g} to {last:g}.")
    return figure(title, image, caption, legend=[line.name for line in series] if len(series) > 1 else ())


def bars(title: str, rows: Sequence[tuple[str, float, object]], *, caption: object = "") -> Markup:
    """Horizontal bars with a common zero. ``rows``: name, value ≥ 0, the value as it is shown."""
    most = max((value for _, value, _ in rows), default=0) or 1
    with styled():
        drawing, axes = canvas(44 * len(rows))
        for i, (name, value, shown) in enumerate(rows):
            y = 44 * i
            write(axes, 0, y + 14, name, bold=True)
            write(axes, WIDTH, y + 14, shown, anchor="end", bold=True)
            axes.barh(y + 25.5, WIDTH, 9, color=COLOURS["wash"], clip_on=False)
            axes.barh(y + 25.5, max(WIDTH * value / most, 1.5 if value else 0), 9, color=COLOURS["c1"], clip_on=False)
        image = svg(drawing, title, "; ".join(f"{name}: {shown}" for name, _, shown in rows) + ".")
    return figure(title, image, caption)


def intervals(
    title: str, rows: Sequence[tuple[str, Mapping[str, Any]]], *, caption: object = "", digits: int = 3, level: int = 3
) -> Markup:
    """Estimates with their intervals around a zero line.

    ``rows``: name, {"estimate", "low", "high"} (any may be None); where there is a ``p_holm`` it stands beside the estimate.
    """
    found = [v for _, row in rows for v in (row.get("low"), row.get("estimate"), row.get("high")) if v is not None]
    spoken = []
    with styled():
        ticks = nice(min([*found, 0.0]), max([*found, 0.0]))
        low, high = min([ticks[0], *found]), max([ticks[-1], *found])
        height = 40.0 * len(rows)
        drawing, axes = canvas(height + 22)
        px = _scale(low, high, 10, WIDTH - 10)
        widest = _LETTER * max(len(str(_tick(ticks, tick, sign=True))) for tick in ticks)
        room = 1.5 * widest + 6  # a label at the side stands beside its tick, not under it
        every = math.ceil(room / (px(ticks[1]) - px(ticks[0])))  # those without room are left out, that of zero never
        middle = min(range(len(ticks)), key=lambda i: abs(ticks[i]))
        for place, tick in enumerate(ticks):
            zero = abs(tick) < 1e-12
            axes.plot(
                [px(tick)] * 2, [0, height], color=COLOURS["soft" if zero else "line"], linewidth=1, clip_on=False
            )
            if (place - middle) % every == 0:
                write(axes, px(tick), height + 17, _tick(ticks, tick, sign=not zero), anchor=_side(px(tick)))
        for i, (name, row) in enumerate(rows):
            y = 40 * i + 28
            estimate, left, right = row.get("estimate"), row.get("low"), row.get("high")
            write(axes, 0, y - 13, name, bold=True)
            if estimate is None:
                write(axes, WIDTH, y - 13, "not available", anchor="end")
                spoken.append(f"{name}: not available")
                continue
            shown = str(number(estimate, digits, sign=True))
            p = p_value(row.get("p_holm"))
            write(axes, WIDTH, y - 13, Markup(f"{shown}, {p}" if p else shown), anchor="end", bold=True)
            between = ""
            if left is not None and right is not None:
                axes.plot([px(left), px(right)], [y, y], color=COLOURS["c1"], linewidth=3, alpha=0.55, clip_on=False)
                between = f", interval {number(left, digits)} to {number(right, digits)}"
            axes.plot([px(estimate)], [y], "o", color=COLOURS["c1"], markersize=9, markeredgewidth=0, clip_on=False)
            corrected = f", {plain(p)} after Holm's correction" if p else ""
            spoken.append(f"{name}: {number(estimate, digits, sign=True)}{between}{corrected}")
        image = svg(drawing, title, "; ".join(spoken) + ".")
    return figure(title, image, caption, level=level)


def before_after(
    title: str, rows: Sequence[tuple[str, float | None, float | None]], names: tuple[str, str], *, caption: object = ""
) -> Markup:
    """Two values a row, joined by a line, on a common axis from zero."""
    spoken = []
    with styled():
        ticks = nice(0.0, max([v for _, *pair in rows for v in pair if v is not None] or [1.0]))
        height = 38.0 * len(rows)
        drawing, axes = canvas(height + 22)
        px = _scale(0.0, ticks[-1], 8, WIDTH - 8)
        for tick in ticks:
            axes.plot([px(tick)] * 2, [0, height], color=COLOURS["line"], linewidth=1, clip_on=False)
            write(axes, px(tick), height + 16, _tick(ticks, tick), anchor=_side(px(tick)))
        for i, (name, *pair) in enumerate(rows):
            y = 38 * i + 26
            write(axes, 0, y - 11, name, bold=True)
            known = [v for v in pair if v is not None]
            axes.plot([px(v) for v in known], [y] * len(known), color=COLOURS["soft"], linewidth=1, clip_on=False)
            for value, colour in zip(pair, ("c2", "c1")):
                if value is not None:
                    axes.plot(
                        [px(value)], [y], "o", color=COLOURS[colour], markersize=9, markeredgewidth=0, clip_on=False
                    )
            spoken.append(f"{name}: {number_text(pair[0])} then {number_text(pair[1])}")
        image = svg(drawing, title, f"{names[0]}, then {names[1]}. " + "; ".join(spoken) + ".")
    keys = el("ul", el("li", swatch(2), names[0]), el("li", swatch(1), names[1]), class_="legend")
    return figure(title, [image, keys], caption)


def distributions(
    title: str, categories: Sequence[str], series: Sequence[tuple[str, Sequence[float]]], *, caption: object = ""
) -> Markup:
    """Probabilities of ordered categories, side by side."""
    most = max([p for _, values in series for p in values] or [1.0]) or 1.0
    base, cell = 118.0, WIDTH / max(len(categories), 1)
    width = min(cell * 0.8 / max(len(series), 1), 22)
    with styled():
        drawing, axes = canvas(base + 24)
        axes.plot([0, WIDTH], [base, base], color=COLOURS["soft"], linewidth=1, clip_on=False)
        for i, name in enumerate(categories):
            middle = cell * (i + 0.5)
            write(axes, middle, base + 17, name, anchor="middle")
            best = max((values[i] for _, values in series), default=0)
            write(axes, middle, base - 96 * best / most - 5, f"{100 * best:.0f} %", anchor="middle")
        middles = [cell * (i + 0.5) for i in range(len(categories))]
        for j, (_, values) in enumerate(series):
            x = [middle + (j + 0.5 - len(series) / 2) * width for middle in middles]
            tall = [-96 * p / most for p in values]
            axes.bar(x, tall, max(width - 1, 1), bottom=base, color=COLOURS[f"c{j + 1}"], clip_on=False)
        spoken = "; ".join(
            f"{name}: " + ", ".join(f"{c} {100 * p:.0f} %" for c, p in zip(categories, values))
            for name, values in series
        )
        image = svg(drawing, title, spoken + ".")
    return figure(title, image, caption, legend=[s[0] for s in series] if len(series) > 1 else ())


def points(
    title: str,
    series: Sequence[tuple[str, Sequence[tuple[float, Mapping[str, Any]]]]],
    *,
    x_label: str,
    caption: object = "",
    identity: bool = False,
    logarithmic: bool = False,
    zero: bool = False,
    below: Mapping[float, Sequence[str]] | None = None,
) -> Markup:
    """Estimates with intervals over a number.

    Args:
      title, caption: of the figure.
      series: name, and points: x, {"estimate", "low", "high"} (low and high may be None).
      x_label: what x is.
      identity: draw the line y = x, where estimates would lie if they were what x says.
      logarithmic: x on a logarithmic axis.
      zero: draw the line y = 0.
      below: further lines under the number of an x on a logarithmic axis, e.g. what it costs; as many for every x.
    """
    every = [(x, row) for _, line in series for x, row in line if row.get("estimate") is not None]
    if not every:
        return figure(title, el("p", "No point has a number.", class_="absent"), caption)
    values = [float(row[k]) for _, row in every for k in ("low", "estimate", "high") if row.get(k) is not None]
    xs = [x for x, _ in every]
    values += [min(xs), max(xs)] if identity else []
    values += [0.0] if zero else []
    with styled():
        ticks = nice(min(values), max(values))
        lines = max((len(more) for more in (below or {}).values()), default=0)
        drawing, axes = framed(256 + 15 * lines, left=_room(ticks), bottom=44 + 15 * lines)
        if identity:
            ends = [min(xs), max(xs)]
            axes.plot(ends, ends, color=COLOURS["soft"], linewidth=1, linestyle=(0, (3, 3)), clip_on=False)
        if zero:
            axes.axhline(0, color=COLOURS["soft"], linewidth=1, clip_on=False)
        decades = max(math.log10(max(xs) / min(xs)), 0.7) if logarithmic else 0.0
        apart = 10 ** (0.022 * decades)  # intervals of one x stand side by side, as far apart on any axis
        for i, (_, line) in enumerate(series, 1):
            beside = apart ** (i - (len(series) + 1) / 2)
            colour = COLOURS[f"c{i}"]
            known = [(x * beside, row) for x, row in line if row.get("estimate") is not None]
            for x, row in known:
                if row.get("low") is not None and row.get("high") is not None:
                    axes.plot([x, x], [row["low"], row["high"]], color=colour, linewidth=3, alpha=0.45, clip_on=False)
            y = [row["estimate"] for _, row in known]
            axes.plot(
                [x for x, _ in known],
                y,
                "o-",
                color=colour,
                linewidth=1.5,
                markersize=7,
                markeredgewidth=0,
                clip_on=False,
            )
        if logarithmic:
            axes.set_xscale("log")
            places = sorted(set(xs))
            axes.set_xticks(places, ["\n".join([f"{x:g}", *(below or {}).get(x, ())]) for x in places])
            if len(places) == 1:  # else the axis is as narrow as the distance between two series
                axes.set_xlim(places[0] / 2, places[0] * 2)
            axes.minorticks_off()
        else:
            _ticks(axes.xaxis, nice(min(xs), max(xs)))
        axes.set(ylim=(min(ticks[0], *values), max(ticks[-1], *values)))
        _ticks(axes.yaxis, ticks)
        axes.set_xlabel(x_label, color=COLOURS["soft"], labelpad=4)
        spoken = "; ".join(
            f"{name}: "
            + ", ".join(
                f"{' '.join([f'{x:g}', *(below or {}).get(x, ())])} gives {number_text(row.get('estimate'))}"
                for x, row in line
            )
            for name, line in series
        )
        image = svg(drawing, title, f"{spoken}.")
    return figure(title, image, caption, legend=[name for name, _ in series] if len(series) > 1 else ())


# -- axes ---------------------------------------------------------------------------------------------------------------


def nice(low: float, high: float) -> list[float]:
    """Round values that cover [low, high], at most seven."""
    from matplotlib.ticker import MaxNLocator

    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-3):  # nothing to see: room around the one value
        margin = abs(low) * 0.1 if abs(low) > 1e-9 else 1.0
        low, high = low - margin, high + margin
    return [float(tick) for tick in MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]


def number_text(value: float | None, digits: int = 3) -> str:
    """A number for spoken descriptions."""
    return "not available" if value is None else str(number(float(value), digits))


def thin(line: Series, most: int = 160) -> Series:
    """The series as at most ``most`` means of neighbouring points."""
    size = math.ceil(len(line.x) / most)
    if size <= 1:
        return line
    xs: list[float] = []
    ys: list[float | None] = []
    for begin in range(0, len(line.x), size):
        values = [y for y in line.y[begin : begin + size] if y is not None]
        part = line.x[begin : begin + size]
        xs.append(sum(part) / len(part))
        ys.append(sum(values) / len(values) if values else None)
    return Series(line.name, xs, ys)


def _tick(ticks: Sequence[float], tick: float, *, sign: bool = False) -> Markup:
    step = min((b - a for a, b in itertools.pairwise(ticks)), default=1.0)
    digits = next((d for d in range(7) if abs(step - round(step, d)) < 1e-9 * max(step, 1e-9) + 1e-15), 6)
    return number(float(tick) + 0.0, digits, sign=sign)


def _ticks(axis: Any, ticks: Sequence[float]) -> None:
    axis.set_ticks(list(ticks), [str(_tick(ticks, tick)) for tick in ticks])


def _room(ticks: Sequence[float]) -> float:
    return 14 + _LETTER * max(len(_tick(ticks, tick)) for tick in ticks)


def _hang(axes: Any) -> None:
    """The first and the last label of the x axis stay within the drawing."""
    labels = axes.get_xticklabels()
    if len(labels) > 1:
        labels[0].set_ha("left")
        labels[-1].set_ha("right")


def _scale(low: float, high: float, left: float, right: float) -> Any:
    return lambda x: left + (right - left) * (x - low) / (high - low)


def _say(values: Sequence[float | None], digits: int) -> str:
    found = [v for v in values if v is not None]
    return f"{number_text(found[0], digits)} to {number_text(found[-1], digits)}" if found else "no values"


def _side(x: float) -> str:
    return "start" if x < 14 else "end" if x > WIDTH - 14 else "middle"
