"""Parts of a page, and charts."""

import itertools
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from report.page_reader import Reader

from scaletot_jax.report.cards import tree
from scaletot_jax.report.charts import Series, bars, before_after, curves, distributions, intervals, nice, points
from scaletot_jax.report.examples import bucket_names, short_hash
from scaletot_jax.report.page import Markup, document, el, interval, number, table, text
from scaletot_jax.report.plots import COLOURS, WIDTH


@given(st.text(), st.text())
def test_whatever_the_text_it_stays_text(content, value):
    made = el("p", content, title=value)
    read = Reader(made)
    assert [tag for tag, _, _ in read.elements] == ["p"]
    made.encode("utf-8")
    if not re.search(
        "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]", content + value
    ):
        assert "".join(read.text) == content
        assert read.all("p")[0]["title"] == value


def test_text_cannot_disguise_itself_by_direction_marks():
    assert text("abc\u202egnp.exe\x00") == "abc\ufffdgnp.exe\ufffd"


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [
        (1234567, 3, "1,234,567"), (-3, 3, "−3"), (0.12345, 3, "0.123"), (-0.5, 2, "−0.50"), (0.0, 3, "0.000"),
        (0.00003, 4, "3e−05"), (1234.5, 1, "1,234.5"), ("x<y", 3, "x&lt;y"),
    ],
)  # fmt: skip
def test_numbers(value, digits, shown):
    assert number(value, digits) == shown


def test_numbers_that_do_not_exist_are_a_dash():
    for value in (None, float("nan"), float("inf")):
        assert "not available" in number(value)
    assert number(0.5, 1, sign=True) == "+0.5"
    assert "0.10 to 0.30" in interval({"estimate": 0.2, "low": 0.1, "high": 0.3}, 2)
    assert "ci" not in interval({"estimate": 0.2, "low": None, "high": None}, 2)


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_ticks_cover_the_range_and_ascend(a, b):
    low, high = sorted((a, b))
    ticks = nice(low, high)
    slack = 1e-6 * max(abs(low), abs(high), 1e-9) + 1e-9
    assert ticks[0] <= low + slack and ticks[-1] >= high - slack
    assert all(x < y for x, y in itertools.pairwise(ticks))
    assert 2 <= len(ticks) <= 7


def test_charts_bear_gaps_constants_and_single_points():
    for chart in (
        curves("a", [Series("s", [1, 2, 3], [None, 1.0, None])], x_label="step"),
        curves("a", [Series("s", [1, 2], [1.0, 1.0])], x_label="step"),
        curves("a", [Series("s", [], [])], x_label="step"),
        curves("a", [Series("s", range(1000), [0.5] * 999 + [None])], x_label="step"),
        intervals("a", [("x", {"estimate": None, "low": None, "high": None}), ("y", {"estimate": 1.0})]),
        bars("a", [("x", 0.0, "0")]),
        bars("a", []),
        before_after("a", [("x", None, 1.0)], ("b", "c")),
        distributions("a", [], []),
        points("a", [("s", [(1, {"estimate": None})])], x_label="x"),
        points("a", [("s", [(1, {"estimate": 2.0, "low": None, "high": None})])], x_label="x", logarithmic=True),
    ):
        assert "nan" not in Reader(chart).open and "nan" not in chart


@pytest.mark.parametrize("shares", [[7.32], [5.0, 10.0], [0.5, 1.0, 2.5, 7.32, 20.0, 50.0, 100.0]])
def test_intervals_of_one_share_stand_side_by_side_above_its_tokens(shares):
    row = {"estimate": 0.01, "low": 0.0, "high": 0.02}
    below = {share: [f"{share:g}k"] for share in shares}
    series = [(name, [(share, row) for share in shares]) for name in "abc"]
    chart = points("a", series, x_label="x", logarithmic=True, below=below)
    places = sorted(
        float(x) for x in re.findall(r'<path d="M ([\d.]+) [\d.]+ L \1 [\d.]+" [^>]*stroke="var\(--c\d\)"', chart)
    )
    assert len(places) == 3 * len(shares)
    assert all(after - before >= 4 for before, after in itertools.pairwise(places))  # units; a line is 3 wide
    assert all(f">{share:g}k</text>" in chart for share in shares)


@example(-0.00052, 0.00042)
@given(st.floats(-0.01, 0), st.floats(1e-5, 0.01))
def test_the_labels_of_an_axis_of_intervals_do_not_overlap(low, high):
    row = {"estimate": 0.0, "low": low, "high": high}
    drawn = re.findall(
        r'<text x="([\d.]+)" y="([\d.]+)"[^>]* text-anchor="(\w+)"[^>]*>([^<]*)</text>', intervals("a", [("x", row)])
    )
    labels = [(float(x), anchor, label) for x, y, anchor, label in drawn if float(y) > 40]
    ends = sorted(
        (x - {"start": 0, "middle": 0.5, "end": 1}[anchor] * 6.4 * len(label), 6.4 * len(label))
        for x, anchor, label in labels
    )
    assert any(re.fullmatch(r"0\.?0*", label) for *_, label in labels)
    assert all(begin + long <= after for (begin, long), (after, _) in itertools.pairwise(ends))


def test_long_curves_are_thinned_to_means():
    line = Series("s", list(range(1, 1001)), [float(i) for i in range(1, 1001)])
    path = Reader(curves("a", [line], x_label="step")).all("path")[0]["d"]
    assert path.count("L") < 160


def test_bucket_names_and_hashes():
    assert bucket_names([(0, 0), (2, 3), (23, 30)]) == ["0", "2–3", "23–30"]
    assert short_hash("0123456789abcdef") == "01234567"
    assert short_hash("alice@example.org") == "unnamed"


def test_a_table_refuses_nothing_and_escapes_everything():
    made = table("c & d", ["a<b"], [["<i>"], [Markup("<b>x</b>")]])
    assert "<i>" not in made and "<b>x</b>" in made and "c &amp; d" in made


def test_the_tree_draws_every_candidate_and_the_selected_path():
    base = {"probability": 0.5, "kept": True, "refined": False, "reason": ""}
    nodes = [
        {**base, "depth": 1, "node": 1, "parent": 0, "segment": "Context", "values": ["settled"]},
        {**base, "depth": 1, "node": 2, "parent": 0, "segment": "Context", "values": ["moving"], "kept": False},
        {
            **base,
            "depth": 2,
            "node": 3,
            "parent": 1,
            "segment": "Habit",
            "values": ["weekly", "evening"],
            "refined": True,
        },
    ]
    drawn = Reader(tree(nodes, ["settled", "weekly", "evening"]))
    paint = [(a.get("fill"), a.get("stroke")) for a in drawn.all("path")]
    assert paint.count(("var(--c1)", "var(--c1)")) == 2  # kept
    assert paint.count(("var(--card)", "var(--c5)")) == 1  # pruned
    assert paint.count(("none", "var(--c2)")) == 1  # asked again
    edges = [("none", "var(--c1)"), ("none", "var(--line)")]
    assert [paint.count(edge) for edge in edges] == [2, 1]  # the chosen path, and the other branch
    other = Reader(tree(nodes, ["other"])).all("path")
    assert not [a for a in other if (a.get("fill"), a.get("stroke")) == edges[0]]


def test_a_drawing_has_the_colours_of_the_page_and_nothing_a_policy_forbids():
    """No inline style, id, font or definition; text is text, whatever it says."""
    hostile = "a $x_1$ <b> & \u202e\x00 %s"
    read = Reader(bars(hostile, [(hostile, 2.0, number(2.0)), ("y", 1.0, "1")]))
    assert {tag for tag, _, _ in read.elements} == {"figure", "h3", "svg", "title", "desc", "path", "text"}
    for _, attributes, _ in read.elements:
        assert not {"style", "id", "font-family", "clip-path"} & set(attributes)
    assert "a $x_1$ <b> & \ufffd\ufffd %s" in read.text
    colours = {
        value for a in read.all("path") + read.all("text") for value in (a.get("fill"), a.get("stroke")) if value
    }
    assert colours <= {"none", *(f"var(--{name})" for name in COLOURS)} and "var(--c1)" in colours


def test_a_bar_is_as_long_as_its_value():
    drawn = [
        a["d"] for a in Reader(bars("b", [("x", 4.0, "4"), ("y", 1.0, "1")])).all("path") if a["fill"] == "var(--c1)"
    ]
    widths = [max(map(float, re.findall(r"[ML] (-?[\d.]+)", d))) for d in drawn]
    assert widths == [WIDTH, WIDTH / 4]


def test_points_lie_where_their_numbers_say():
    """On a linear axis, the middle of three equally spaced points is drawn in the middle."""
    line = [(x, {"estimate": float(x), "low": x - 0.5, "high": x + 0.5}) for x in (1, 2, 3)]
    read = Reader(points("p", [("s", line)], x_label="x", identity=True))
    marks = [a["transform"] for a in read.all("path") if "transform" in a]
    xs, ys = zip(*[map(float, re.findall(r"-?[\d.]+", mark)) for mark in marks])
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.02) and ys[0] - ys[1] == pytest.approx(
        ys[1] - ys[2], abs=0.02
    )
    assert xs[0] < xs[2] and ys[0] > ys[2]
    assert read.all("svg")[0]["aria-label"] == "p. s: 1 gives 1.000, 2 gives 2.000, 3 gives 3.000."


def test_the_frame_of_the_page_escapes_its_title():
    assert "<title>a &lt; b</title>" in document("a < b", [], "text")
