"""A walk over the text of a compiled program, in which a loop's body counts as often as the loop runs.

Trip counts are those that the text states, else the constant of the loop's condition. A loop whose bound is data shows
the constant it is compared with, if there is one, and else counts once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

_HEADER = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{\s*$")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|branch_computations|called_computations|true_computation|false_computation)="
)
_NAMES = re.compile(r"\{?(%?[\w.\-]+(?:, ?%?[\w.\-]+)*)\}?")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_INTEGER = re.compile(r"[su]\d+\[\](?:\{[^}]*\})? constant\((\d+)\)")


class Line(NamedTuple):
    """One operation of the program.

    Attributes:
      text: the line.
      place: the computation it stands in, and its number there.
      trips: how often it runs, loops multiplied.
      depth: loops around it.
      fused: whether it is a part of a fusion, whose cost stands at the fusion itself.
      loops: bodies of the loops around it, outermost first.
    """

    text: str
    place: tuple[str, int]
    trips: int
    depth: int
    fused: bool
    loops: tuple[str, ...]


class Program:
    """The computations of ``compiled.as_text()``, of any backend."""

    def __init__(self, text: str):
        self.computations: dict[str, list[str]] = {}
        self.entry = name = ""
        for line in text.splitlines():
            if line[:1] not in (" ", "}", ""):
                header = _HEADER.match(line)
                if header:
                    name = header[1]
                    self.computations[name] = []
                    self.entry = name if line.startswith("ENTRY") else self.entry
            elif name and line.startswith(" "):
                self.computations[name].append(line)

    def lines(self) -> Iterator[Line]:
        """Every operation that runs, once for each place that it is reached from."""
        yield from self._walk(self.entry, 1, (), False, ())

    def _walk(
        self, name: str, trips: int, loops: tuple[str, ...], fused: bool, above: tuple[str, ...]
    ) -> Iterator[Line]:
        if name in above:
            return
        above = (*above, name)
        for number, text in enumerate(self.computations.get(name, [])):
            yield Line(text, (name, number), trips, len(loops), fused, loops)
            if " while(" in text:
                body, condition = (re.search(rf"\b{part}=%?([\w.\-]+)", text) for part in ("body", "condition"))
                if body and condition:
                    times = self.trip_count(text, condition[1])
                    yield from self._walk(body[1], trips * times, (*loops, body[1]), False, above)
                continue
            for called in called_by(text):
                yield from self._walk(called, trips, loops, fused or " fusion(" in text, above)

    def trip_count(self, text: str, condition: str) -> int:
        """How often the loop of a ``while`` line runs."""
        stated = _TRIPS.search(text)
        if stated:
            return int(stated[1])
        pending, bounds = [condition], [1]
        while pending:
            for inner in self.computations.get(pending.pop(), []):
                bounds += [int(value) for value in _INTEGER.findall(inner)]
                pending += list(called_by(inner))
        return max(bounds)


def called_by(text: str) -> Iterator[str]:
    """Names of the computations that an operation other than a loop calls."""
    for match in _CALLED.finditer(text):
        names = _NAMES.match(text, match.end())
        if names:
            yield from (name.strip().lstrip("%") for name in names[1].split(","))
