"""The report: self-contained, escaped, redacted, reproducible, readable, and honest about what is missing."""

import base64
import dataclasses
import hashlib
import itertools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report.report_run import CANARY, USER, key_of, make_run

from scaletot_jax.errors import ConfigError, StaleRunError
from scaletot_jax.report.cards import tree
from scaletot_jax.report.examples import bucket_names, short_hash
from scaletot_jax.report.figures import Series, bars, before_after, curves, distributions, intervals, nice_ticks
from scaletot_jax.report.material import collect, segment_uncertainty
from scaletot_jax.report.page import Markup, document, el, interval, number, table, text
from scaletot_jax.report.report import SECTIONS, excerpt, render, report
from scaletot_jax.run import STAGES, Run

VOID = {"meta", "link", "br", "hr", "img", "col"}


class Reader(HTMLParser):
    """A strict reader: every element is closed in order; keeps what the tests ask about."""

    def __init__(self, page: str):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.text, self.styles = [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), tuple(self.open)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        (self.styles if self.open and self.open[-1] == "style" else self.text).append(data)

    def all(self, tag):
        return [attributes for name, attributes, _ in self.elements if name == tag]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with make_run(tmp_path_factory.mktemp("report") / "run") as run:
        report(run)
        yield run


@pytest.fixture(scope="module")
def page(run):
    return (run.workdir / "report" / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def read(page):
    return Reader(page)


# -- self-contained and safe --------------------------------------------------------------------------------------------


def test_the_page_loads_nothing(read):
    for tag, attributes, _ in read.elements:
        assert tag not in ("script", "iframe", "object", "embed", "base", "form", "img", "use", "image"), tag
        for name, value in attributes.items():
            assert not name.startswith("on") and name not in ("src", "srcset", "style", "action", "xlink:href"), (
                tag,
                name,
            )
            if name == "href":
                assert value.startswith("#") or value == "data:,", value
    assert "url(" not in "".join(read.styles) and "@import" not in "".join(read.styles)


def test_the_security_policy_allows_the_one_style_sheet_and_nothing_else(read):
    (policy,) = [a["content"] for a in read.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    (style,) = read.styles
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}';")
    assert "unsafe" not in policy and "http" not in policy


def test_a_script_in_a_field_and_in_a_slot_is_shown_and_not_run(page, read):
    assert "<script" not in page.lower()
    assert page.count("&lt;script&gt;alert(&#x27;canary&#x27;)&lt;/script&gt;") >= 3
    shown = "".join(read.text)
    assert f"city: {CANARY}" in shown  # field value, in the prompt text
    assert f"duplicate {CANARY}" in shown  # reason
    assert f"Interests: {CANARY}" in shown  # slot value, in the tree


def test_no_user_and_no_whole_hash_is_shown(run, page):
    keys = [key_of(i) for i in range(40)]
    for name in ("report/report.html", "metrics.json", "env.json", "config.json"):
        content = (run.workdir / name).read_text(encoding="utf-8")
        assert USER not in content
        assert not [key for key in keys if key in content]
    assert sum(key[:8] in page for key in keys) == run.config["report"]["chains"]


def test_no_path_of_this_machine_is_shown(run, page):
    assert run.config["lm"]["chain_spec"].startswith("/")  # the configuration has one
    for content in (page, (run.workdir / "metrics.json").read_text(), (run.workdir / "env.json").read_text()):
        assert str(run.workdir.parent) not in content
    assert "…/shop.yaml" in page


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


# -- readable -----------------------------------------------------------------------------------------------------------


def test_headings_are_in_order_and_sections_are_named(read):
    levels = [int(tag[1]) for tag, _, _ in read.elements if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [a["id"] for _, a, _ in read.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for _, attributes, _ in read.elements:
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in ids
    assert [a["href"] for a in read.all("a") if a["href"] != "#content"] == [f"#{name}" for name in SECTIONS]
    assert set(SECTIONS) <= set(ids)


def test_every_figure_and_table_has_an_accessible_name(read):
    images = [a for a in read.all("svg") if a.get("aria-hidden") != "true"]
    assert len(images) > 15
    assert all(a["role"] == "img" and len(a["aria-label"]) > 10 for a in images)
    tables = len(read.all("table"))
    assert tables == len(read.all("caption")) > 8
    assert all(a.get("scope") in ("row", "col") for a in read.all("th"))
    assert not [a for a in read.all("svg") if "viewbox" not in a]


def test_colours_have_contrast_in_both_schemes(read):
    style = "".join(read.styles)
    light, dark = (
        dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)[:2]
    )

    def luminance(colour):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(a, b):
        high, low = sorted((luminance(a), luminance(b)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    for scheme in (light, dark):
        for ground in ("paper", "card", "wash"):
            for ink in ("ink", "soft", "accent", "yes", "no", "open"):
                assert contrast(scheme[ink], scheme[ground]) >= 4.5, (ink, ground, scheme[ink])
            for mark in ("c1", "c2", "c3"):
                assert contrast(scheme[mark], scheme[ground]) >= 3, (mark, ground)


# -- content ------------------------------------------------------------------------------------------------------------


def sentence_of(run):
    return json.loads((run.workdir / "evaluate" / "metrics.json").read_text())["verdict"]["sentence"]


def test_the_verdict_stands_on_top_with_its_interval(run, page):
    top = page[: page.index('id="people"')]
    subject = sentence_of(run).split(": ")[0]
    assert "cannot be told at this size" in subject
    heading = re.search(r"<h1[^>]*>(.*?)</h1>", top)[1]
    assert heading == f"{subject}: Spearman of lt30 +0.004 with ẑ (95 % interval −0.011 to +0.019)"
    assert "Placebo: another user&#x27;s ẑ +0.002 (−0.005 to +0.010)" in top
    assert top.index("<h1") < top.index("<h2")


@pytest.mark.parametrize("word", ["helped", "hurt"])
def test_the_other_verdicts(tmp_path, word):
    with make_run(tmp_path / "run", word=word) as run:
        report(run)
    content = (run.workdir / "report" / "report.html").read_text()
    assert f">{word}</span>" in content
    assert f"{sentence_of(run).split(': ')[0]}: Spearman of lt30" in content


def test_numbers_come_from_the_artifacts(run, page):
    shown = re.sub("<[^>]+>", " ", page)
    for number_ in (
        "9,834",
        "2,011",
        "0.1457",
        "0.1379",
        "16,350",
        "74,880",
        "best cross-validated R² of the days label",
    ):
        assert number_ in shown
    assert "nan" not in shown.lower().replace("finance", "")
    metrics = json.loads((run.workdir / "metrics.json").read_text())
    evaluated = json.loads((run.workdir / "evaluate" / "metrics.json").read_text())
    estimate = evaluated["targets"]["lt30"]["features"]["static"]["systems"]["ridge"]["rmse"]["estimate"]
    assert f"{estimate:.3f}" in shown
    assert metrics["evaluation"]["targets"] == evaluated["targets"]


def test_slices_are_shown_with_their_words_and_without_numbers_where_there_are_too_few(run):
    """Cells of the first table, that of the verdict's label and fields."""
    read = excerpt(run.workdir, run.config, "seen")
    first, *others = (re.findall(r"<tr>(.*?)</tr>", table_) for table_ in re.findall(r"<tbody>(.*?)</tbody>", read))
    rows = [[re.sub("<[^>]+>", " ", cell).split() for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in first]  # fmt: skip
    assert [" ".join(row[0]) for row in rows] == [
        "Among those the teacher reasoned about", "Not among those the teacher reasoned about",
        "Among those the heads were trained on", "Not among those the heads were trained on", "The former minus the latter",
    ]  # fmt: skip
    assert rows[2][1:3] == [["907"], ["344"]] and rows[2][5] == ["+0.0310", "+0.0120", "to", "+0.0470", "helped"]
    assert rows[3][5][-1] == "hurt" and rows[4][5] == ["+0.0550", "+0.0330", "to", "+0.0710"]
    assert rows[1][1:4] == [["17"], ["9"], ["–"]] and " ".join(rows[1][5]) == "too few to tell fewer than 30 rows"
    assert len(others) == 3 and read.count("not applicable") == 2


def test_transfer_of_groups_the_student_knew_is_named_for_what_it_is(run):
    shown = re.sub("<[^>]+>", " ", excerpt(run.workdir, run.config, "transfer"))
    unseen, trained = shown.split("groups whose chains or labels trained the student")
    assert "groups that no training of the language model saw" in unseen and "0.410" in unseen and "0.770" not in unseen
    assert "0.770" in trained and "Groups of the teacher split" in unseen


def test_a_run_from_before_the_slices_and_the_two_kinds_of_held_out_groups_is_still_shown(tmp_path):
    with make_run(tmp_path / "run") as run:
        path = run.workdir / "distill" / "stage.json"
        record = json.loads(path.read_text())
        record["summary"]["transfer"] = record["summary"]["transfer"]["unseen_groups"]
        path.write_text(json.dumps(record))
        material = collect(run)
    evaluation = json.loads(json.dumps(material.evaluation))
    for target in evaluation["targets"].values():
        for found in target["features"].values():
            del found["slices"]
    content = render(dataclasses.replace(material, evaluation=evaluation))
    Reader(content)
    assert "This evaluation was made without slices" in content
    assert "groups of the teacher split among them" in content


def test_merged_metrics(run):
    metrics = json.loads((run.workdir / "metrics.json").read_text())
    assert metrics["student"]["base_rate_rps"] == 0.1457
    assert [metrics["student"][name]["rps"] for name in ("base", "sft", "osipo")] == [0.1702, 0.1391, 0.1379]
    assert metrics["verdict"]["sentence"] == sentence_of(run)
    assert metrics["teacher"]["chains"]["accepted"] == 29
    assert metrics["teacher"]["funnel"]["profiles"] == 30
    assert metrics["distill"]["layer"] == 11
    assert metrics["score"]["rows"] == metrics["data"]["rows"] == 9834
    assert metrics["missing"] == {}
    config = json.loads((run.workdir / "config.json").read_text())
    assert config == json.loads(json.dumps(run.config))
    environment = json.loads((run.workdir / "env.json").read_text())
    assert environment["packages"]["jax"] and environment["cpus"] >= 1


def test_a_student_without_signal_is_named(tmp_path):
    with make_run(tmp_path / "run") as run:
        path = run.workdir / "osipo" / "stage.json"
        record = json.loads(path.read_text())
        record["summary"].update(osipo_signal=False, outcome_variance=2e-6, process_stopped={"kl": 7})
        path.write_text(json.dumps(record))
        report(run)
    content = (run.workdir / "report" / "report.html").read_text()
    assert "OSIPO had no signal" in content
    assert "switched off from update 7" in content


def test_uncertainty_before_and_after_refinement():
    columns = (
        "exact_key",
        "parent",
        "depth",
        "segment",
        "entropy",
        "disagreement",
        "uncertainty",
        "threshold",
        "refined",
        "refinement_accepted",
        "reason",
    )
    rows = [
        ("a", 0, 1, "context", 0.9, 0.1, 0.8, 0.5, True, True, "replaced by the revision"),
        ("a", 0, 1, "context", 0.3, 0.2, 0.2, 0.5, True, True, ""),
        ("a", 0, 1, "context", 0.3, 0.2, 0.2, 0.5, True, True, "outside the beam"),
        ("b", 0, 1, "context", 0.5, 0.4, 0.4, 0.5, False, False, ""),
        ("b", 1, 2, "outlook", 0.7, 0.0, 0.6, 0.5, True, False, ""),
        ("b", 2, 3, "rule", 0.0, 0.0, 0.0, 0.0, False, False, ""),  # no call: not an expansion
    ]
    context, outlook = segment_uncertainty(pa.Table.from_pylist([dict(zip(columns, row)) for row in rows]))
    assert (context["expansions"], context["refined"], context["accepted"]) == (2, 1, 1)
    assert context["entropy_before"] == pytest.approx((0.9 + 0.5) / 2)
    assert context["entropy_after"] == pytest.approx((0.3 + 0.5) / 2)
    assert context["uncertainty_before"] == pytest.approx((0.8 + 0.4) / 2)
    assert (outlook["segment"], outlook["refined"], outlook["accepted"]) == ("outlook", 1, 0)
    assert outlook["entropy_before"] == outlook["entropy_after"]


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
    read = Reader(tree(nodes, ["settled", "weekly", "evening"]))
    classes = [a.get("class") for a in read.all("circle")]
    assert classes.count("node kept") == 2 and classes.count("node pruned") == 1 and classes.count("ring") == 1
    assert [a["class"] for a in read.all("path")] == ["edge", "edge path", "edge path"]
    assert not [a for a in Reader(tree(nodes, ["other"])).all("path") if a["class"] == "edge path"]


# -- missing, stale, changed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", range(len(STAGES)))
def test_any_prefix_of_the_line_gives_a_report_that_names_what_is_missing(tmp_path, count):
    done = STAGES[:-1][:count]
    with make_run(tmp_path / "run", stages=done) as run:
        stage = report(run)
    assert stage.done
    content = (run.workdir / "report" / "report.html").read_text()
    Reader(content)
    metrics = json.loads((run.workdir / "metrics.json").read_text())
    assert set(metrics["missing"]) == set(STAGES[:-1]) - set(done)
    assert ("verdict" in metrics) == ("evaluate" in done)
    assert ("No verdict yet" in content) == ("evaluate" not in done)
    for name in set(STAGES[:-1]) - set(done) - {"score", "sft"}:
        assert f"the stage <code>{name}</code> has not finished" in content, name


def test_a_stage_built_on_an_older_one_is_not_reported(tmp_path):
    with make_run(tmp_path / "run") as run:
        path = run.workdir / "osipo" / "stage.json"
        record = json.loads(path.read_text())
        record["identity"]["extra"] = "another state"
        path.write_text(json.dumps(record))
    with Run(tmp_path / "run", run.config) as run:
        report(run)
    missing = json.loads((run.workdir / "metrics.json").read_text())["missing"]
    assert missing["distill"] == "stage 'distill' was built on another state of 'osipo'; run it again"
    assert set(missing) == {"distill", "score", "evaluate"}


def test_another_configuration_is_refused(tmp_path):
    with make_run(tmp_path / "run") as run:
        config = {**run.config, "sft": {**run.config["sft"], "learning_rate": 0.5}}
    with Run(tmp_path / "run", config) as other, pytest.raises(StaleRunError, match=r"sft.learning_rate: 0.001 -> 0.5"):
        report(other)
    assert not (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.parametrize(
    "name", ["teach/nodes.parquet", "evaluate/metrics.json", "sft/steps.jsonl", "prepare/renderer.json"]
)
def test_a_changed_artifact_is_refused(tmp_path, name):
    with make_run(tmp_path / "run") as run:
        path = run.workdir / name
        path.write_bytes(path.read_bytes() + b"\n")
        with pytest.raises(StaleRunError, match="SHA-256"):
            report(run)


def test_equal_runs_give_equal_bytes(tmp_path):
    pages = []
    for name in ("first", "second"):
        with make_run(tmp_path / name / "run") as run:
            report(run)
        pages.append([(run.workdir / part).read_bytes() for part in ("report/report.html", "metrics.json", "env.json")])
    assert pages[0] == pages[1]


def test_a_second_report_redoes_nothing_and_a_new_stage_renews_it(tmp_path):
    with make_run(tmp_path / "run", stages=STAGES[:4]) as run:
        report(run)
        path = run.workdir / "report" / "report.html"
        before = path.stat().st_mtime_ns
        (run.workdir / "metrics.json").unlink()
        report(run)
        assert path.stat().st_mtime_ns == before
        assert (run.workdir / "metrics.json").exists()
    with make_run(tmp_path / "run") as run:
        report(run)
    assert json.loads((run.workdir / "metrics.json").read_text())["missing"] == {}
    assert "No verdict yet" not in path.read_text()


def test_without_a_chain_specification_the_cards_have_numbers_for_names(tmp_path):
    with make_run(tmp_path / "run", spec=False) as run:
        report(run)
    content = (run.workdir / "report" / "report.html").read_text()
    Reader(content)
    assert 'title="slot 1"' in content


def test_an_excerpt_is_one_section(run):
    content = excerpt(run.workdir, run.config, "chains")
    read = Reader(content)
    assert [a["id"] for a in read.all("section")] == ["chains"]
    with pytest.raises(ConfigError, match="no such section"):
        excerpt(run.workdir, run.config, "nothing")


# -- parts --------------------------------------------------------------------------------------------------------------


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


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.integers(2, 8))
def test_ticks_cover_the_range_and_ascend(a, b, count):
    low, high = sorted((a, b))
    ticks = nice_ticks(low, high, count)
    slack = 1e-6 * max(abs(low), abs(high), 1e-9) + 1e-9
    assert ticks[0] <= low + slack and ticks[-1] >= high - slack
    assert all(x < y for x, y in itertools.pairwise(ticks))
    assert 2 <= len(ticks) <= count + 2


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
    ):
        assert "nan" not in Reader(chart).open and "nan" not in chart


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


# -- in a browser -------------------------------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--enable-logging=stderr", "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip


def browse(folder, page, *flags):
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'browser'}", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=180)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: the page is not looked at in a browser")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it_without_complaint(run, tmp_path, scheme):
    page = run.workdir / "report" / "report.html"
    picture = tmp_path / f"{scheme}.png"
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    shown = browse(tmp_path, page, *dark, "--window-size=1200,900", f"--screenshot={picture}")
    assert "CONSOLE" not in shown.stderr and "Refused" not in shown.stderr, shown.stderr
    assert picture.stat().st_size > 20_000


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: the page is not measured in a browser")
def test_nothing_overflows_a_phone(run, tmp_path):
    """The page in a frame of 390 pixels, measured by a script of the outer document."""
    (tmp_path / "report.html").write_text((run.workdir / "report" / "report.html").read_text())
    measure = (
        '<body><iframe id=f width=390 height=800 src=report.html onload="let d=f.contentDocument.documentElement;'
        "document.title=d.scrollWidth+' of '+d.clientWidth\"></iframe></body>"
    )
    outer = tmp_path / "outer.html"
    outer.write_text(measure)
    shown = browse(tmp_path, outer, "--allow-file-access-from-files", "--virtual-time-budget=3000", "--dump-dom")
    found = re.search(r"<title>(\d+) of (\d+)</title>", shown.stdout)
    assert found, shown.stdout[:500] + shown.stderr
    assert int(found[1]) <= int(found[2]) == 390


def test_the_frame_of_the_page_escapes_its_title():
    assert "<title>a &lt; b</title>" in document("a < b", [], "text")
