"""A small chain whose values share prefixes, start one another and include free text, and a tokenizer to match."""

import re

from scaletot_jax.chains.grammar import compile_chain
from scaletot_jax.chains.spec import parse_spec

EOS = 0


class PieceEncoder:
    """Splits text into pieces of at most four characters, so that most values take several tokens and share the first.

    Ids are given in the order in which pieces are first seen; the answer words of four letters stay single tokens.
    """

    def __init__(self):
        self.table = {}

    def __call__(self, text):
        return [self.table.setdefault(piece, len(self.table) + 1) for piece in re.findall(r"\n|;| ?[^\n; ]{1,4}", text)]

    def decode(self, ids):
        text = {i: piece for piece, i in self.table.items()}
        return "".join(text.get(int(i), "?") for i in ids)


def content():
    """A specification as parsed YAML; tests change single entries."""
    return {
        "name": "example",
        "version": 1,
        "instruction": "Describe the person.",
        "segments": [
            {
                "name": "context",
                "title": "Context",
                "slots": [
                    {
                        "name": "stage",
                        "source": "rule",
                        "values": ["young", "middle", "older", "unknown"],
                        "rule": {
                            "kind": "thresholds",
                            "field": "age",
                            "cuts": [30, 60],
                            "names": ["young", "middle", "older"],
                        },
                    },
                    {
                        "name": "home",
                        "source": "scored",
                        "values": ["settled", "settling", "moving", "unknown"],
                        "stems": ["They are", "At home they are"],
                        "unknown_when_missing": ["city", "age"],
                    },
                ],
            },
            {
                "name": "interests",
                "title": "Interests",
                "slots": [
                    {"name": "note", "source": "free", "max_tokens": 3},
                    {
                        "name": "food",
                        "source": "scored",
                        "values": ["fresh", "fresh fish", "fresh fruit", "tins", "unknown"],
                        "stems": ["They eat", "Their food is"],
                    },
                ],
            },
            {"name": "remark", "title": "Remark", "slots": [{"name": "remark", "source": "free", "max_tokens": 2}]},
        ],
        "answer": {
            "title": "Days",
            "label": "lt30",
            "buckets": [[0, 0], [1, 3], [4, 30]],
            "words": [" no", " few", " many"],
            "phrases": [" 0 days", " 1-3 days", " 4-30 days"],
            "stems": ["Active on", "Days:"],
        },
    }


def example():
    """The example's specification, compiled; ``.encode`` is a :class:`PieceEncoder`."""
    return compile_chain(parse_spec(content(), where="example"), PieceEncoder(), EOS)
