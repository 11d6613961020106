"""Profiles as the arrays that an exported program reads, by what interface.json says. Needs NumPy, nothing of scaletot_jax.

Beside the two scripts that use it; copy both files. A profile is a dict field -> value, with None where a value is not known.
"""

import hashlib
import json
from pathlib import Path

import numpy as np


def open_program(folder, name):
    """The description and the bytes of a program, which must be the one described."""
    says, program = json.loads((Path(folder) / "interface.json").read_text()), (Path(folder) / name).read_bytes()
    assert hashlib.sha256(program).hexdigest() == says["files"][name], "the program is not the one described"
    return says, program


def encode(says, profiles):
    """The arrays cat, num, missing and multi; a profile without one of the fields is a KeyError."""
    columns, width = says["columns"], says["inputs"]["multi"]["shape"][2]

    def word(value, ids):
        text = value if isinstance(value, str) else str(value).lower()  # true and false
        return says["ids"]["missing"] if value is None else ids.get(text, says["ids"]["unknown"])

    def words(x, column):
        x = [None] if x is None else list(dict.fromkeys(x if column["ranked"] else sorted(x)))[: column["keep"]]
        return [word(value, column["ids"]) for value in x] + [says["ids"]["padding"]] * (width - len(x))

    def table(name, cell, kind):
        return np.array([[cell(profile[c["field"]], c) for c in columns[name]] for profile in profiles], kind)

    num, shape = table("num", number, float), (len(profiles), len(columns["multi"]), width)
    return {
        "cat": table("cat", lambda x, column: word(x, column["ids"]), np.int32),
        "num": np.nan_to_num(num).astype(np.float32),
        "missing": np.isnan(num),
        "multi": table("multi", words, np.int32).reshape(shape),
    }


def number(x, column):
    """One number column of a field; NaN where it has none."""
    if x is None or column["part"] == "order":
        return column.get("places", {}).get(x, np.nan)
    x = np.datetime64(x, "D").astype(int) if column["kind"] == "date" else round(x, column.get("digits", 15))
    if column["part"] == "rank":
        return np.interp(x, column["knots"], column["ranks"])
    log = (np.sign(x) * np.log1p(abs(x)) - column["mean"]) / column["std"]
    return np.clip(log, -column["clip"], column["clip"])
