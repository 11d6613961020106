"""Free texts of the teacher in the report."""

import re

from scaletot_jax.report.cards import Card, Slot, chain_card
from scaletot_jax.report.material import Material
from scaletot_jax.report.sections import people

TEXTS = {"asked": 31, "accepted": 17, "empty": 5, "rejected": {"budget": 3, "number": 8, "value": 3}}


def test_accepted_and_rejected_texts_are_counted():
    page = str(people(Material({}, {"prepare": {"rows": 9}, "teach": {"texts": TEXTS}})))
    for words, count in (
        ("asked for", 31),
        ("accepted", 17),
        ("of these empty", 5),
        ("a number that", 8),
        ("budget", 3),
    ):
        row = next(row for row in page.split("<tr>") if words in row and "<td" in row)
        assert f">{count}<" in row, words
    assert "Free texts" not in str(people(Material({}, {"prepare": {"rows": 9}, "teach": {}})))


def test_the_chosen_path_is_found_whatever_was_written():
    """The tree was searched before the texts were written: its nodes have none."""

    def card(written):
        slots = [Slot("Context", "stage", "young", 0.5), Slot("Context", "note", "likes music", None, written)]
        node = dict(depth=1, node=1, parent=0, segment="Context", values=["young", ""], probability=0.5, kept=True)
        return str(chain_card(Card("ab", None, slots, [], [], True, "", 3, [node])))

    strong = re.compile(r'stroke-width[=:] ?"?2\.5')  # the line of the chosen path
    assert strong.search(card(True)) and not strong.search(card(False))
    empty = Slot("Remark", "remark", "", None, True)
    assert "(no text)" in str(chain_card(Card("ab", None, [empty], [], [], True, "", 3, [])))
