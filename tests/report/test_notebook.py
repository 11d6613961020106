"""Objects in a notebook: what they say, that it is escaped, and that it names nobody."""

import re

import numpy as np
import pyarrow as pa
import pytest
from report.page_reader import Reader
from report.report_run import CANARY, USER, key_of

from scaletot_jax.chains.parser import BAD_ENUM, TRUNCATED, ParsedChain, ParsedSegment
from scaletot_jax.config import default_config
from scaletot_jax.datasets.synthetic import build_table
from scaletot_jax.files import read_json, write_json, write_table
from scaletot_jax.profiles.prepare import Population, build_population
from scaletot_jax.profiles.schema import load_schema
from scaletot_jax.profiles.table import validate
from scaletot_jax.report import inline
from scaletot_jax.report.cards import Card, Slot
from scaletot_jax.report.examples import example_cards
from scaletot_jax.report.explorer_data import Users, explorer_data
from scaletot_jax.report.notebook import Evaluation, Profile, chains, evaluation, profiles
from scaletot_jax.run import Run
from scaletot_jax.teacher import tree as trees

TAGS = {"div", "style", "code", "small", "span", "p", "dl", "dt", "dd", "table", "thead", "tbody", "tr", "th", "td",
        "details", "summary", "pre", "ul", "li", "b"}  # fmt: skip


def shown(item):
    """The piece, read strictly: only plain elements, no script and no handler."""
    read = Reader(item._repr_html_())
    assert {tag for tag, _, _ in read.elements} <= TAGS
    assert not {name for _, attributes, _ in read.elements for name in attributes} - {"class", "style", "title", "open"}
    return read, " ".join("".join(read.text).split())


def test_profiles_of_a_run(run):
    found = profiles(run.workdir, run.config, 2)
    assert [one.profile for one in found] == sorted(key_of(i)[:8] for i in range(40))[:2]
    _, text = shown(found)
    assert text.count("Profile") == 2 and "visits" in text.lower()
    assert USER not in found._repr_html_() and USER not in repr(found)
    everyone = profiles(run.workdir, run.config, 40)
    assert CANARY not in everyone._repr_html_() and "alert" in shown(everyone)[1]


def test_free_text_of_a_profile_is_named_and_withheld(tmp_path):
    fields = [
        {"name": "city", "kind": "enum", "role": "static"},
        {"name": "wish", "kind": "text", "role": "static", "render": True},
    ]
    with Run(tmp_path, default_config().to_dict()) as run:
        stage = run.stage("prepare", sections=("seed",))
        table = {"user_id": [USER, USER], "exact_key": ["b1", "a0"], "city": ["Arden", None], "wish": ["call me", None]}
        write_table(stage.path("population.parquet"), pa.table(table))
        write_json(stage.path("renderer.json"), {"fields": fields, "cuts": {}})
        stage.finish(["population.parquet", "renderer.json"])
        hidden, told = (profiles(tmp_path, run.config, show_text=show) for show in (False, True))
    assert [one.profile for one in hidden] == ["a0", "b1"] and shown(hidden[0])[1].endswith("Nothing is known.")
    assert "Free text is hidden: " in shown(hidden[1])[1] and "Free text" not in shown(told)[1]
    for found, says in ((hidden, False), (told, True)):
        assert ("call me" in shown(found)[1]) == ("call me" in repr(found)) == says
        assert "Arden" in shown(found)[1] and USER not in found._repr_html_()


def test_chains_and_their_trees(run):
    (card, *_) = found = chains(run.workdir, run.config, 6)
    read, text = shown(card)
    assert len(found) == 6 and card.profile in text and "accepted" in text and "after the chain" in text
    assert all(slot.value in text for slot in card.slots) and "candidates" in text
    widths = [style for _, attributes, _ in read.elements if (style := attributes.get("style"))]
    assert len(widths) == 4 * 3  # four buckets of three answers
    assert USER not in "".join(map(repr, found)) + found._repr_html_() and CANARY not in found._repr_html_()
    read, text = shown(card.tree)
    assert len(read.all("b")) == 3  # the selected chain, a node a segment
    assert len(read.all("li")) == len(card.nodes) and text.count("●") == sum(node["kept"] for node in card.nodes)
    deepest = max(place.count("ul") for _, _, place in read.elements)
    assert deepest == 3
    assert "rejected" in "".join(shown(one)[1] for one in chains(run.workdir, run.config, 30))


def test_text_is_hidden_where_the_specification_is_gone():
    """Then only its missing distribution says that a slot was written freely."""
    row = {"exact_key": key_of(0), "rank": 0, "values": ["settled", "I owe money"], "distributions": [[0.7, 0.3], []],
           "accepted": True, "reason": "", "answer": [0.5, 0.5]}  # fmt: skip
    nodes = pa.table(
        {"exact_key": pa.array([], pa.string()), "refined": pa.array([], pa.bool_()), "depth": pa.array([], pa.int8())}
    )
    for show in (False, True):
        (card,) = example_cards(pa.Table.from_pylist([row]), nodes, None, None, None, 1, show)
        users = Users(np.arange(1), [key_of(0)], ["test"], [["City: Arden"]])
        data = explorer_data(users, [row], {}, {}, None, total=1, label="days", show_text=show)
        assert ("owe" in str(card.slots)) == ("owe" in str(data)) == show


def test_the_evaluation(run):
    found = evaluation(run.workdir, run.config)
    record = read_json(run.workdir / "evaluate" / "metrics.json")
    _, text = shown(found)
    assert found.word == record["verdict"]["word"] and found.word in text and record["verdict"]["sentence"] in text
    assert record["verdict"]["sentence"] in repr(found)
    for name, row in record["verdict"]["comparisons"].items():
        assert f"{row['estimate']:+.4f}".replace("-", "−") in text and name
    assert "no verdict yet" in Reader(inline.evaluation({})).text[-1]


def test_a_parsed_chain_says_nothing_of_its_text():
    segments = (
        ParsedSegment("context", True, 0, 4, ("settled", (17, 18, 19))),
        ParsedSegment("need", False, 4, 6, (), BAD_ENUM),
    )
    chain = ParsedChain(segments, None, TRUNCATED, False, np.zeros(6, np.int32))
    _, text = shown(chain)
    assert "settled" in text and "text of 3 tokens" in text and BAD_ENUM in text and "incomplete" in text
    assert "18" not in text and "18" not in repr(chain)
    whole = ParsedChain(segments[:1], 2, None, True, np.zeros(6, np.int32))
    assert "bucket 2" in shown(whole)[1] and "answer 2" in repr(whole)


def test_a_tree_of_the_search_itself():
    tree = trees.empty(5, 2)
    tree, first = trees.add(tree, trees.ROOT, (1, 0), 0.75, kept=True)
    tree, _ = trees.add(tree, trees.ROOT, (0, 1), 0.25, reason=trees.OUTSIDE)
    tree, _ = trees.add(tree, first, (2,), 0.5, kept=True)
    read, text = shown(tree)
    assert len(read.all("li")) == 3 and text.count("●") == 2 and "outside the beam" in text
    assert "value 1; value 0" in text and "0.75" in text and "value -1" not in text


def test_a_population_shows_counts_and_no_row():
    schema = load_schema("synthetic")
    fractions = {"teacher": 0.25, "distill": 0.2, "head": 0.3, "val": 0.1, "test": 0.15, "time_forward": False,
                 "evaluation_share": 0.4, "shift_field": "", "shift_train": "", "shift_test": ""}  # fmt: skip
    table = build_population(validate(build_table(200, seed=1), schema), schema, "static+early", fractions, 0)
    found = Population(table, schema, schema.profile_fields("static+early"), None, None)
    _, text = shown(found)
    assert "200 rows" in text and "isits" in text and "lt30" in text
    ids = table["user_id"].to_pylist()
    assert not any(one in found._repr_html_() + repr(found) for one in ids) and "200 rows" in repr(found)


def test_whatever_is_shown_is_escaped():
    node = {
        "node": 1,
        "parent": 0,
        "depth": 1,
        "segment": CANARY,
        "values": [CANARY],
        "probability": 0.5,
        "kept": True,
        "reason": CANARY,
    }
    card = Card(
        CANARY, CANARY, [Slot(CANARY, CANARY, CANARY, 0.5)], [CANARY], [(CANARY, [1.0])], False, CANARY, 1, [node]
    )
    verdict = {"word": CANARY, "sentence": CANARY, "metric": CANARY, "caveat": CANARY, "not_run": [CANARY],
               "comparisons": {CANARY: {"estimate": 0.1, "low": 0.0, "high": 0.2, "p_holm": 0.5, "word": CANARY}}}  # fmt: skip
    parsed = ParsedChain((ParsedSegment(CANARY, True, 0, 1, (CANARY,)),), None, CANARY, False, np.zeros(1))
    for item in (
        Profile(CANARY, ((CANARY, CANARY),), (CANARY,)),
        card,
        card.tree,
        Evaluation({"verdict": verdict}),
        parsed,
    ):
        _, text = shown(item)
        assert CANARY in text and CANARY not in item._repr_html_()


@pytest.mark.parametrize("name", ["color", "background", "border", "border-left", "border-bottom"])
def test_no_colour_is_set_that_one_of_two_themes_would_hide(name):
    style = "".join(Reader(inline.piece("a")).styles)
    values = re.findall(rf"(?<![-\w]){name}:\s*([^;}}]+)", style)
    assert values
    for value in values:
        bare = re.sub(r"rgba\(127,127,127,[.\d]+\)|\d+px|solid", "", value).strip()
        assert bare in ("", "none", "inherit"), value
