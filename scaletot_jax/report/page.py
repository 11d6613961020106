"""A self-contained HTML page: elements that escape what they are given, tables, and the document around them.

Nothing enters the page unescaped unless it is :class:`Markup`, which only :func:`el` and its callers here make. The page
loads nothing: its content security policy allows its own style sheet and scripts, by hash, and no font, frame or request.
"""

from __future__ import annotations

import base64
import hashlib
import html
import math
import re
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any

# Controls that HTML forbids, and the marks that reorder text on screen: a field value must not disguise itself.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
_VOID = {"meta", "br", "hr", "link", "img", "col", "input"}


class Markup(str):
    """Text that is HTML already. Never wrap anything that came from a file in it."""

    __slots__ = ()


def text(value: object) -> Markup:
    """``value`` as escaped HTML text; characters that a page cannot carry become U+FFFD."""
    if isinstance(value, Markup):
        return value
    return Markup(html.escape(clean(str(value)), quote=True))


def clean(value: str) -> str:
    """``value`` with U+FFFD for every character that a page cannot carry, or that would reorder its text."""
    return _UNSAFE.sub("\ufffd", value)


def el(tag: str, *children: object, **attributes: object) -> Markup:
    """One element, e.g. ``el("p", "2 < 3", class_="note")`` gives ``<p class="note">2 &lt; 3</p>``.

    Args:
      tag: its name.
      children: Markup stays as it is, everything else is escaped; None is left out; lists are flattened.
      attributes: a trailing underscore is dropped and the others become hyphens (``stroke_width``); None and False are
        left out, True gives the bare name.
    """
    parts = []
    for name, value in attributes.items():
        name = name.rstrip("_").replace("_", "-")
        if value is True:
            parts.append(f" {name}")
        elif value is not None and value is not False:
            parts.append(f' {name}="{text(_short(value))}"')
    opening = f"<{tag}{''.join(parts)}>"
    if tag in _VOID:
        return Markup(opening)
    return Markup(f"{opening}{join(children)}</{tag}>")


def join(children: Iterable[object], separator: str = "") -> Markup:
    """Children one after another, escaped where they are not Markup."""
    return Markup(separator.join(_flat(children)))


def _flat(children: Iterable[object]) -> Iterable[str]:
    for child in children:
        if isinstance(child, (list, tuple)):
            yield from _flat(child)
        elif child is not None:
            yield text(child)


def _short(value: object) -> object:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


# -- numbers ------------------------------------------------------------------------------------------------------------

MISSING = el("span", "–", class_="missing", title="not available")


def number(value: Any, digits: int = 3, *, sign: bool = False) -> Markup:
    """A number for reading: whole numbers with thousands separators, others with ``digits`` decimals, none as a dash."""
    if value is None or isinstance(value, (str, bool)) or not math.isfinite(value):
        return MISSING if value is None or isinstance(value, float) else text(value)
    if isinstance(value, int):
        return text(f"{value:+,}".replace("-", "\u2212") if sign else f"{value:,}".replace("-", "\u2212"))
    style = f",.{digits}f" if not 0 < abs(value) < 0.5 * 10.0**-digits else ".0e"  # never shows as 0 what is not
    shown = format(value, f"+{style}" if sign else style)
    return text(shown.replace("-", "\u2212"))


def interval(value: Any, digits: int = 3, *, sign: bool = False) -> Markup:
    """``{"estimate", "low", "high"}`` as an estimate with its interval; a bare number stays a number."""
    if not isinstance(value, dict):
        return number(value, digits, sign=sign)
    shown = number(value.get("estimate"), digits, sign=sign)
    low, high = value.get("low"), value.get("high")
    if low is None or high is None:
        return shown
    ends = join([number(low, digits, sign=sign), " to ", number(high, digits, sign=sign)])
    return join([shown, el("span", ends, class_="ci")])


def percent(share: Any, digits: int = 1) -> Markup:
    """A share in percent."""
    return MISSING if share is None else text(f"{100 * share:.{digits}f}\u00a0%".replace("-", "\u2212"))


def p_value(p: Any) -> Markup:
    """A p-value as ``p 0.021``, below 0.001 as ``p < 0.001``; empty where there is none."""
    if p is None or not math.isfinite(p):
        return text("")
    return text("p < 0.001" if p < 0.001 else f"p {p:.3f}")


# -- blocks -------------------------------------------------------------------------------------------------------------


def table(
    caption: str,
    header: Sequence[object],
    rows: Sequence[Sequence[object]],
    *,
    numeric: Sequence[int] = (),
    sortable: bool = False,
) -> Markup:
    """A table with caption and scopes, in a region that scrolls by itself on a narrow screen.

    Args:
      caption: what the table shows.
      header: column names.
      rows: cells; the first of each row is its header.
      numeric: columns that are aligned as numbers.
      sortable: whether the reader may order the rows by a column, see sort.js.
    """
    right = set(numeric)
    head = [el("th", cell, scope="col", class_="n" if i in right else None) for i, cell in enumerate(header)]
    body = []
    for row in rows:
        cells = [el("th", row[0], scope="row")]
        cells += [el("td", cell, class_="n" if i in right else None) for i, cell in enumerate(row[1:], 1)]
        body.append(el("tr", cells))
    kind = "narrow" if len(header) == 2 and right else "sortable" if sortable else None  # a name and a number stay near
    content = el(
        "table", el("caption", el("span", caption)), el("thead", el("tr", head)), el("tbody", body), class_=kind
    )
    return el("div", content, class_="scroll", role="region", tabindex=0, aria_label=caption)


def section(identifier: str, title: str, *children: object) -> Markup:
    """One section with its heading and an anchor."""
    heading = el("h2", title, id=f"{identifier}-title")
    return el("section", heading, children, id=identifier, aria_labelledby=f"{identifier}-title")


def absent(what: str, stage: str) -> Markup:
    """Says that a stage has not written what a section needs."""
    return el("p", f"{what} is not in this run: the stage ", el("code", stage), " has not finished.", class_="absent")


def folded(summary: object, *children: object, open_: bool = False) -> Markup:
    """Content that unfolds on demand."""
    return el("details", el("summary", summary), children, open=open_)


def facts(pairs: Sequence[tuple[object, object]]) -> Markup:
    """Large numbers with their names."""
    return el("dl", [el("div", el("dt", name), el("dd", value)) for name, value in pairs], class_="facts")


def document(
    title: str,
    sections: Sequence[tuple[str, str]],
    *body: object,
    kind: str | None = None,
    styles: Sequence[str] = ("report.css",),
    scripts: Sequence[str] = ("sort.js", "print.js"),
    data: Markup | None = None,
) -> str:
    """The whole page.

    Args:
      title: of the browser's tab and the header.
      sections: (id, title) of the sections, for the list of contents.
      body: the content of ``main``.
      kind: class of ``main``.
      styles, scripts: files of this package, put into the page; its security policy allows these by hash and nothing else.
      data: a block of JSON for the scripts.
    """
    style = "".join(_package_file(name) for name in styles)
    code = [_package_file(name) for name in scripts]
    policy = f"default-src 'none'; style-src {_digest(style)}; "
    policy += f"script-src {' '.join(map(_digest, code))}; " if code else ""
    policy += "img-src data:; base-uri 'none'; form-action 'none'"
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", **{"http_equiv": "Content-Security-Policy", "content": policy}),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="referrer", content="no-referrer"),
        el("meta", name="color-scheme", content="light dark"),
        el("link", rel="icon", href="data:,"),
        el("title", title),
        Markup(f"<style>{style}</style>"),
    )
    contents = el("ul", [el("li", el("a", name, href=f"#{identifier}")) for identifier, name in sections])
    page = el(
        "body",
        el("a", "Skip to the content", href="#content", class_="skip"),
        el("header", el("p", title, class_="brand"), el("nav", contents, aria_label="Contents") if sections else None),
        el("main", body, id="content", class_=kind),
        data,
        [Markup(f"<script>{part}</script>") for part in code],
    )
    return f'<!DOCTYPE html>\n<html lang="en">{head}{page}</html>\n'


def _package_file(name: str) -> str:
    return files("scaletot_jax.report").joinpath(name).read_text(encoding="utf-8")


def _digest(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
