"""The report: self-contained, escaped, redacted, readable."""

import base64
import hashlib
import itertools
import re

import pytest
from report.page_reader import Reader
from report.report_run import CANARY, USER, key_of

from scaletot_jax.report.report import SECTIONS


@pytest.fixture(scope="module")
def page(run):
    return (run.workdir / "report" / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def read(page):
    return Reader(page)


# -- self-contained and safe --------------------------------------------------------------------------------------------


def test_the_page_loads_nothing(read):
    for tag, attributes, _ in read.elements:
        assert tag not in ("iframe", "object", "embed", "base", "form", "img", "use", "image"), tag
        for name, value in attributes.items():
            assert not name.startswith("on") and name not in ("src", "srcset", "style", "action", "xlink:href"), (
                tag,
                name,
            )
            if name == "href":
                assert value.startswith("#") or value in ("data:,", "explorer.html"), value
    assert not re.search(r"fetch|XMLHttpRequest|import\(|WebSocket|\.src\b|innerHTML", "".join(read.scripts))
    assert "url(" not in "".join(read.styles) and "@import" not in "".join(read.styles)


@pytest.mark.parametrize("name", ["report.html", "explorer.html"])
def test_the_security_policy_allows_what_is_in_the_page_and_nothing_else(run, name):
    read = Reader((run.workdir / "report" / name).read_text(encoding="utf-8"))
    (policy,) = [a["content"] for a in read.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    (style,) = read.styles
    kinds = [a.get("type") for a in read.all("script")]
    code = [content for content, kind in zip(read.scripts, kinds) if kind is None]
    style, *code = (
        f"'sha256-{base64.b64encode(hashlib.sha256(p.encode()).digest()).decode()}'" for p in (style, *code)
    )
    assert len(code) == 2
    assert policy.startswith(f"default-src 'none'; style-src {style}; script-src {' '.join(code)}; img-src data:;")
    assert "unsafe" not in policy and "http" not in policy


def test_a_script_in_a_field_and_in_a_slot_is_shown_and_not_run(page, read):
    assert page.lower().count("<script") == len(read.scripts) == 2  # the sorter, and what opens for paper
    assert page.count("&lt;script&gt;alert(&#x27;canary&#x27;)&lt;/script&gt;") >= 3
    shown = "".join(read.text)
    assert f"city: {CANARY}" in shown  # field value, in the prompt text
    assert f"duplicate {CANARY}" in shown  # reason
    assert shown.count(CANARY) >= 8  # slot values, in chains and trees


def test_no_user_and_no_whole_hash_is_shown(run, page):
    keys = [key_of(i) for i in range(40)]
    for name in ("report/report.html", "report/explorer.html", "metrics.json", "env.json", "config.json"):
        content = (run.workdir / name).read_text(encoding="utf-8")
        assert USER not in content
        assert not [key for key in keys if key in content]
    assert sum(key[:8] in page for key in keys) == run.config["report"]["chains"]


def test_no_path_of_this_machine_is_shown(run, page):
    assert run.config["lm"]["chain_spec"].startswith("/")  # the configuration has one
    for content in (page, (run.workdir / "metrics.json").read_text(), (run.workdir / "env.json").read_text()):
        assert str(run.workdir.parent) not in content
    assert "…/shop.yaml" in page


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
    links = [a["href"] for a in read.all("a")]
    assert links == ["#content", *[f"#{name}" for name in SECTIONS], "explorer.html"]
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
