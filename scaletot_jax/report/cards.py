"""One reasoned profile as a card: its prompt text, its typed chain, its answer, and the tree the search went through.

A card knows no user: it is named by the first digits of the profile's content hash, and shows profile fields only as the
text the language model was given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from scaletot_jax.report.charts import distributions, figure
from scaletot_jax.report.page import Markup, el, folded, number, percent, table
from scaletot_jax.report.plots import COLOURS, WIDTH, canvas, styled, svg, write

HASH_DIGITS = 8
REPLACED = "replaced by the revision"  # the reason nodes.parquet gives to candidates of a revised expansion


class Slot(NamedTuple):
    """One value of a chain."""

    segment: str  # title of its segment
    name: str
    value: str
    probability: float | None  # of that value in the teacher's distribution; None where it came by rule
    written: bool = False  # free text, which the search tree does not know


class SearchTree(NamedTuple):
    """The candidates that the search went through for one profile."""

    profile: str  # short content hash
    nodes: Sequence[Mapping[str, Any]]  # rows of nodes.parquet of this profile
    chosen: Sequence[str] = ()  # the values of the selected chain, free text empty

    def __repr__(self) -> str:
        return f"SearchTree({len(self.nodes)} candidates of profile {self.profile})"

    def _repr_html_(self) -> str:
        from scaletot_jax.report.inline import search_tree

        return search_tree(self)


class Card(NamedTuple):
    """Everything shown of one reasoned profile."""

    profile: str  # short content hash
    prompt: str | None  # the rendered profile
    slots: Sequence[Slot]
    buckets: Sequence[str]  # names of the answer's buckets
    answers: Sequence[tuple[str, Sequence[float]]]  # name, distribution over the buckets
    accepted: bool
    reason: str
    calls: int | None
    nodes: Sequence[Mapping[str, Any]]  # rows of nodes.parquet of this profile

    @property
    def tree(self) -> SearchTree:
        return SearchTree(self.profile, self.nodes, ["" if slot.written else slot.value for slot in self.slots])

    def __repr__(self) -> str:
        return f"Card(profile {self.profile}, {'accepted' if self.accepted else 'rejected'}, {len(self.slots)} slots)"

    def _repr_html_(self) -> str:
        from scaletot_jax.report.inline import chain

        return chain(self)


def chain_card(card: Card) -> Markup:
    """The card as HTML."""
    status = el("span", "accepted" if card.accepted else "rejected", class_=f"badge {'yes' if card.accepted else 'no'}")
    why = [" ", el("span", card.reason, class_="soft")] if card.reason else None
    heading = el("h3", "Profile ", el("code", card.profile), " ", status, why)
    left = [
        el("h4", "Prompt text"),
        el("pre", card.prompt) if card.prompt else el("p", "Not at hand.", class_="absent"),
    ]
    right = [el("h4", "Chain"), typed_chain(card.slots)]
    if card.answers and card.buckets:
        caption = "The answer read from the profile alone, after the chain, and the one stored as the soft label."
        right.append(distributions("Answer", card.buckets, card.answers, caption=caption))
    below = []
    if card.nodes:
        kept = sum(bool(node.get("kept")) for node in card.nodes)
        asked = len({(node["parent"], node["depth"]) for node in card.nodes if node.get("refined")})
        summary = (
            f"The tree: {len(card.nodes)} candidates, {kept} kept, {asked} expansion{'s' * (asked != 1)} asked again"
        )
        below = [
            folded(
                summary,
                tree(card.nodes, card.tree.chosen),
                node_table(card.nodes),
            )
        ]
    return el("article", heading, el("div", el("div", left), el("div", right), class_="split"), below, class_="chain")


def typed_chain(slots: Sequence[Slot]) -> Markup:
    """The chain's segments, each with its values and how sure the teacher was of them."""
    lines: dict[str, list[Markup]] = {}
    for slot in slots:
        share = [" ", el("small", percent(slot.probability, 0))] if slot.probability is not None else None
        lines.setdefault(slot.segment, []).append(
            el("span", slot.value or "(no text)", share, class_="chip", title=slot.name)
        )
    return el("dl", [[el("dt", segment), el("dd", values)] for segment, values in lines.items()], class_="typed")


def tree(nodes: Sequence[Mapping[str, Any]], chosen: Sequence[str] = ()) -> Markup:
    """The candidates as a node-link diagram, one column a depth.

    Args:
      nodes: rows with depth, node, parent, segment, values, probability, kept, refined.
      chosen: the values of the selected chain; the path that spells it is drawn strongly.
    """
    ordered = sorted(nodes, key=lambda node: (node["depth"], node["node"]))
    depths = sorted({node["depth"] for node in ordered})
    columns = {depth: [node for node in ordered if node["depth"] == depth] for depth in depths}
    rank: dict[int, int] = {}
    for depth in depths:  # children stand in the order of their parents
        columns[depth].sort(key=lambda node: (rank.get(node["parent"], -1), node["node"]))
        rank.update({node["node"]: i for i, node in enumerate(columns[depth])})
    height = 30 + 26 * max(len(column) for column in columns.values())
    left, wide = 12, (WIDTH - 52) / len(depths)
    root = (left, 30 + (height - 30) / 2)  # the bare profile
    place: dict[int, tuple[float, float]] = {}
    for i, depth in enumerate(depths, 1):
        gap = (height - 30) / len(columns[depth])
        for j, node in enumerate(columns[depth]):
            place[node["node"]] = (left + wide * i, 30 + gap * (j + 0.5))
    path = path_of(ordered, chosen)
    with styled():
        drawing, axes = canvas(height)
        for strong in (False, True):  # the chosen path on top
            for node in ordered:
                if (node["node"] in path) == strong:
                    _edge(axes, place.get(node["parent"], root), place[node["node"]], strong)
        axes.plot(*root, "o", color=COLOURS["soft"], markersize=10, markeredgewidth=0, clip_on=False)
        for node in ordered:
            _mark(axes, place[node["node"]], node)
        for i, depth in enumerate(depths, 1):
            write(axes, left + wide * i, 12, str(columns[depth][0]["segment"])[:12], anchor="middle")
        spoken = f"{len(nodes)} candidates in {len(depths)} segments; the table below lists them."
        image = svg(drawing, "Search tree", spoken)
    caption = "Filled: kept. Hollow: pruned. Ring: asked again. Dashed: replaced by that revision. Larger: more probable. Strong line: the selected chain."
    return figure("Search tree", image, caption)


def _edge(axes: Any, start: tuple[float, float], end: tuple[float, float], strong: bool) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    middle = (start[0] + end[0]) / 2
    curve = Path([start, (middle, start[1]), (middle, end[1]), end], [Path.MOVETO, *[Path.CURVE4] * 3])
    colour, width = (COLOURS["c1"], 2.5) if strong else (COLOURS["line"], 1.5)
    axes.add_patch(PathPatch(curve, fill=False, edgecolor=colour, linewidth=width, clip_on=False))


def _mark(axes: Any, at: tuple[float, float], node: Mapping[str, Any]) -> None:
    from matplotlib.patches import Circle

    radius = 3.5 + 5 * max(0.0, min(1.0, node.get("probability") or 0.0)) ** 0.5
    kept, replaced = bool(node.get("kept")), node.get("reason") == REPLACED
    edge, face = COLOURS["c1" if kept else "c5"], COLOURS["c1" if kept else "card"]
    style = (0, (2, 2)) if replaced and not kept else "-"
    marks = [Circle(at, radius, edgecolor=edge, facecolor=face, linewidth=1.5, linestyle=style)]
    if node.get("refined") and not replaced:
        marks.append(Circle(at, radius + 3.5, edgecolor=COLOURS["c2"], fill=False, linewidth=2))
    for mark in marks:
        mark.set_clip_on(False)
        axes.add_patch(mark)


def node_table(nodes: Sequence[Mapping[str, Any]]) -> Markup:
    """Every candidate of the search with its numbers and what became of it."""
    rows = []
    for node in sorted(nodes, key=lambda node: (node["depth"], node["node"])):
        rows.append(
            [
                node["segment"],
                "; ".join(map(str, node.get("values") or [])),
                *[number(None if _by_rule(node) else node.get(name), 2) for name in _MEASURES],
                fate(node),
            ]
        )
    header = ["Segment", "Values", "p", "Entropy", "Disagree", "u", "Threshold", "Fate"]
    return table("Candidates, in the order of the search", header, rows, numeric=range(2, 7))


_MEASURES = ("probability", "entropy", "disagreement", "uncertainty", "threshold")


def _by_rule(node: Mapping[str, Any]) -> bool:
    """Whether the node was made without asking the model: such an expansion has no threshold and no doubt."""
    return not node.get("threshold") and not node.get("uncertainty") and not node.get("entropy")


def fate(node: Mapping[str, Any]) -> str:
    """What became of a candidate, in words."""
    parts = ["kept" if node.get("kept") else "pruned"]
    if _by_rule(node):
        parts.append("by rule")
    if node.get("refined"):
        parts.append("refined, accepted" if node.get("refinement_accepted") else "refined, not accepted")
    if node.get("reason"):
        parts.append(str(node["reason"]))
    return "; ".join(parts)


def path_of(nodes: Sequence[Mapping[str, Any]], chosen: Sequence[str]) -> set[int]:
    """The nodes from the first segment to the last whose values, joined, are the selected chain."""
    by_id = {node["node"]: node for node in nodes}
    for leaf in sorted(nodes, key=lambda node: (-node["depth"], not node.get("kept"), node["node"])):
        path: list[int] = []
        values: list[str] = []
        here: Mapping[str, Any] | None = leaf
        while here is not None and here["node"] not in path:
            path.append(here["node"])
            values = [*(here.get("values") or []), *values]
            here = by_id.get(here["parent"])
        if values == list(chosen):
            return set(path)
    return set()
