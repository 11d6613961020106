"""Objects as small pieces of HTML, for notebooks: escaped, redacted, legible on light and dark. Pure.

An output cannot know the notebook's theme, so nothing here has a colour of text or paper of its own: letters are the notebook's,
lines and shades a translucent grey. Where the style sheet is dropped (as GitHub does) a piece is a plain list or table.
:mod:`scaletot_jax.report.page` escapes everything. Identifiers are no part of the objects that are shown; of free text a piece says
that there is some.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scaletot_jax.report.cards import Card, SearchTree, fate, path_of, typed_chain
from scaletot_jax.report.page import Markup, el, folded, interval, join, number, percent

if TYPE_CHECKING:
    from scaletot_jax.chains.parser import ParsedChain, ParsedSegment
    from scaletot_jax.profiles.fields import Field
    from scaletot_jax.report.notebook import Profile
    from scaletot_jax.teacher.tree import Tree

_STYLE = """
.scaletot { max-width: 62rem; padding: .6rem .9rem; border: 1px solid rgba(127,127,127,.35); border-radius: 8px; line-height: 1.5; }
.scaletot + .scaletot { margin-top: .6rem; }
.scaletot .head { font-weight: 600; margin-bottom: .3rem; }
.scaletot small, .scaletot .soft { opacity: .72; font-weight: 400; }
.scaletot p { margin: .3rem 0; max-width: 72ch; }
.scaletot dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: .3rem 0; }
.scaletot dt { opacity: .72; } .scaletot dd { margin: 0; overflow-wrap: anywhere; }
.scaletot .chip { padding: 0 .45rem; margin-right: .3rem; border-radius: 4px; background: rgba(127,127,127,.16); display: inline-block; }
.scaletot table { border-collapse: collapse; margin: .4rem 0; }
.scaletot th, .scaletot td { padding: .15rem .8rem .15rem 0; text-align: left; border-bottom: 1px solid rgba(127,127,127,.3); }
.scaletot td.n, .scaletot th.n { text-align: right; font-variant-numeric: tabular-nums; }
.scaletot td.n .ci { opacity: .72; margin-left: .6rem; }
.scaletot ul { list-style: none; margin: 0; padding-left: 1.1rem; border-left: 1px solid rgba(127,127,127,.35); }
.scaletot summary { cursor: pointer; }
.scaletot pre { white-space: pre-wrap; background: none; color: inherit; margin: .3rem 0; }
"""


def piece(title: object, *children: object) -> str:
    """One object: its heading and what follows, with the style of pieces and of nothing else."""
    style = Markup(f"<style>{_STYLE}</style>")
    return str(el("div", style, el("div", title, class_="head"), children, class_="scaletot"))


def profile(found: Profile) -> str:
    """A profile as the language model reads it, field by field."""
    lines = [[el("dt", label), el("dd", value)] for label, value in found.lines]
    content = el("dl", lines) if lines else el("p", "Nothing is known.")
    return piece(["Profile ", el("code", found.profile)], content, _hidden(found.hidden))


def _hidden(labels: Sequence[str]) -> Markup | None:
    return el("p", "Free text is hidden: ", ", ".join(labels), ".", class_="soft") if labels else None


def population(summary: Mapping[str, Any], fields: Iterable[Field]) -> str:
    """Counts, labels and fields of a population, of no single row.

    Args:
      summary: :func:`scaletot_jax.profiles.prepare.summarise`.
      fields: the profile fields in use.
    """
    splits = ", ".join(f"{name} {count:,}" for name, count in summary["splits"].items())
    head = ["Field", "Kind", "Role", "Missing"]
    rows = [[f.label, f.kind, f.role, percent(summary["missing"][f.name])] for f in fields]
    labels = [
        [name, number(label["mean"], 2), number(label["max"], 2), percent(label["zero_share"])]
        for name, label in summary["labels"].items()
    ]
    return piece(
        ["Population ", el("code", summary["schema"])],
        el("p", number(summary["rows"]), " rows of ", number(summary["users"]), " groups, ",
           number(summary["distinct_profiles"]["exact"]), " distinct profiles"),
        el("p", f"Rows by split: {splits}", class_="soft"),
        _grid(head, rows, numeric=(3,)),
        _grid(["Label", "Mean", "Greatest", "Zero"], labels, numeric=(1, 2, 3)),
    )  # fmt: skip


def chain(card: Card) -> str:
    """A teacher's chain: what it says, the answer it leads to, and on demand the prompt and the tree behind it."""
    said = [
        "Chain of profile ",
        el("code", card.profile),
        " ",
        el("small", "accepted" if card.accepted else "rejected"),
    ]
    said += [" ", el("small", card.reason)] if card.reason else []
    answers = None
    if card.answers and card.buckets:
        rows = [[bucket, *(_share(shares[i]) for _, shares in card.answers)] for i, bucket in enumerate(card.buckets)]
        names = [name for name, _ in card.answers]
        answers = _grid(["Answer", *names], rows, numeric=range(1, len(names) + 1))
    prompt = folded("The prompt text", el("pre", card.prompt)) if card.prompt else None
    behind = folded(_counted(card.nodes), branches(card.nodes, card.tree.chosen)) if card.nodes else None
    return piece(said, typed_chain(card.slots), answers, prompt, behind)


def parsed_chain(found: ParsedChain) -> str:
    """A student's chain as it was read: values, or what is wrong with a segment."""
    lines = [[el("dt", segment.name), el("dd", _values(segment))] for segment in found.segments]
    answer = f"bucket {found.bucket}" if found.bucket is not None else ""
    lines.append([el("dt", "answer"), el("dd", " ".join(filter(None, (answer, found.answer_error))))])
    return piece(["Chain ", el("small", "complete" if found.complete else "incomplete")], el("dl", lines))


def _values(segment: ParsedSegment) -> list[Markup]:
    if not segment.ok:
        return [el("span", segment.error, class_="soft")]
    shown = [value if isinstance(value, str) else f"text of {len(value)} tokens" for value in segment.values]
    return [el("span", value, class_="chip") for value in shown]


def search_tree(found: SearchTree) -> str:
    """The candidates of a search below one another, the selected chain in bold."""
    return piece(
        ["Tree of profile ", el("code", found.profile)],
        el("p", _counted(found.nodes), class_="soft"),
        branches(found.nodes, found.chosen),
    )


def raw_tree(tree: Tree) -> str:
    """The same of the search's own arrays, where segments and values have numbers for names."""
    from scaletot_jax.teacher.tree import NO_VALUE, REASONS

    nodes = [
        {
            "node": i,
            "parent": int(tree.parent[i]),
            "depth": int(tree.depth[i]),
            "segment": f"segment {int(tree.depth[i])}",
            "values": [f"value {int(value)}" for value in tree.values[i] if value != NO_VALUE],
            **{name: float(getattr(tree, name)[i]) for name in _NUMBERS},
            **{name: bool(getattr(tree, name)[i]) for name in ("kept", "refined", "refinement_accepted")},
            "reason": REASONS[int(tree.reason[i])],
        }
        for i in range(1, tree.size)
    ]
    return piece("Tree", el("p", _counted(nodes), class_="soft"), branches(nodes))


_NUMBERS = ("probability", "entropy", "uncertainty", "threshold")


def _counted(nodes: Sequence[Mapping[str, Any]]) -> str:
    kept = sum(bool(node.get("kept")) for node in nodes)
    asked = len({(node["parent"], node["depth"]) for node in nodes if node.get("refined")})
    return f"{len(nodes)} candidates, {kept} kept, {asked} expansion{'s' * (asked != 1)} asked again"


def branches(nodes: Sequence[Mapping[str, Any]], chosen: Sequence[str] = ()) -> Markup:
    """Candidates as nested lists: ● kept, ○ pruned, with probability, doubt and what became of them.

    Args:
      nodes: rows of nodes.parquet of one profile. chosen: values of the selected chain, whose path is set in bold.
    """
    known, path = {node["node"] for node in nodes}, path_of(nodes, chosen) if chosen else set()
    below: dict[Any, list[Mapping[str, Any]]] = {}
    for node in sorted(nodes, key=lambda node: node["node"]):
        below.setdefault(node["parent"] if node["parent"] in known else None, []).append(node)

    def grown(parent: Any) -> Markup | None:
        items = [
            el("li", _candidate(node, node["node"] in path), grown(node["node"])) for node in below.get(parent, ())
        ]
        return el("ul", items) if items else None

    return grown(None) or el("p", "No candidates.", class_="soft")


def _candidate(node: Mapping[str, Any], chosen: bool) -> list[object]:
    values = "; ".join(str(value) or "(text)" for value in node.get("values") or ())
    said = el("b" if chosen else "span", values or "(text)")
    measured = ["p ", number(node.get("probability"), 2)]
    measured += [", doubt ", number(node.get("uncertainty"), 2)] if node.get("threshold") else []
    mark = "● " if node.get("kept") else "○ "
    return [mark, el("small", node["segment"], ": "), said, " ", el("small", measured, "; ", fate(node))]


def evaluation(record: Mapping[str, Any]) -> str:
    """The verdict with its interval, and every required rival.

    Args:
      record: evaluate/metrics.json, or the part of metrics.json under ``evaluation``.
    """
    verdict = record.get("verdict")
    if not isinstance(verdict, Mapping):
        return piece("Evaluation", el("p", "There is no verdict yet."))
    systems = record.get("systems") or {}
    rows = [
        [(systems.get(name) or {}).get("title") or name, interval(row, 4, sign=True), number(row.get("p_holm"), 3), row["word"]]
        for name, row in (verdict.get("comparisons") or {}).items()
    ]  # fmt: skip
    head = [f"{verdict.get('metric')}: with ẑ minus …", "Difference", "p (Holm)", "ẑ here"]
    absent = ", ".join(verdict.get("not_run") or ())
    return piece(
        ["Does ẑ help? ", el("span", verdict.get("word"))],
        el("p", verdict.get("sentence")),
        _grid(head, rows, numeric=(1, 2)),
        el("p", "Not run: ", absent, class_="soft") if absent else None,
        el("p", verdict["caveat"], class_="soft") if verdict.get("caveat") else None,
    )


def _grid(head: Sequence[object], rows: Sequence[Sequence[object]], *, numeric: Iterable[int] = ()) -> Markup:
    right = set(numeric)

    def cells(tag: str, row: Sequence[object]) -> list[object]:
        return [
            cell if _is_cell(cell) else el(tag, cell, class_="n" if i in right else None) for i, cell in enumerate(row)
        ]

    return el(
        "table", el("thead", el("tr", cells("th", head))), el("tbody", [el("tr", cells("td", row)) for row in rows])
    )


def _is_cell(value: object) -> bool:
    return isinstance(value, Markup) and value.startswith("<td")


def _share(share: float) -> Markup:
    """A share as a cell, its size as a shade behind the figure."""
    end = f"{100 * min(max(share, 0.0), 1.0):.0f}%"
    shade = f"background: linear-gradient(to right, rgba(127,127,127,.3) {end}, transparent {end})"
    return el("td", join([percent(share, 0)]), class_="n", style=shade)
