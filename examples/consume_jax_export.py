"""Scores profiles with an exported model.jax_export. Needs NumPy and jax (with flatbuffers), nothing of scaletot_jax.

python consume_jax_export.py MODEL_DIR < profiles.jsonl    # one JSON object a line: field -> value, null where not known
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
from jax import export

folder, profiles = Path(sys.argv[1]), [json.loads(line) for line in sys.stdin]
says, program = json.loads((folder / "interface.json").read_text()), (folder / "model.jax_export").read_bytes()
assert hashlib.sha256(program).hexdigest() == says["files"]["model.jax_export"], "the program is not the one described"
columns, width = says["columns"], says["inputs"]["multi"]["shape"][2]


def word(value, ids):
    text = value if isinstance(value, str) else str(value).lower()  # true and false
    return says["ids"]["missing"] if value is None else ids.get(text, says["ids"]["unknown"])


def number(x, column):
    if x is None or column["part"] == "order":
        return column.get("places", {}).get(x, np.nan)
    x = np.datetime64(x, "D").astype(int) if column["kind"] == "date" else round(x, column.get("digits", 15))
    if column["part"] == "rank":
        return np.interp(x, column["knots"], column["ranks"])
    log = (np.sign(x) * np.log1p(abs(x)) - column["mean"]) / column["std"]
    return np.clip(log, -column["clip"], column["clip"])


def words(x, column):
    x = [None] if x is None else list(dict.fromkeys(x if column["ranked"] else sorted(x)))[: column["keep"]]
    return [word(value, column["ids"]) for value in x] + [says["ids"]["padding"]] * (width - len(x))


def table(name, cell, kind):  # a profile without one of the fields is a KeyError
    return np.array([[cell(profile[c["field"]], c) for c in columns[name]] for profile in profiles], kind)


num, shape = table("num", number, float), (len(profiles), len(columns["multi"]), width)
inputs = {
    "cat": table("cat", lambda x, column: word(x, column["ids"]), np.int32),
    "num": np.nan_to_num(num).astype(np.float32),
    "missing": np.isnan(num),
    "multi": table("multi", words, np.int32).reshape(shape),
}
answer = {
    name: np.asarray(value) for name, value in export.deserialize(bytearray(program)).call(*inputs.values()).items()
}
for i in range(len(profiles)):
    print(json.dumps({name: value[i].tolist() for name, value in answer.items()}))
