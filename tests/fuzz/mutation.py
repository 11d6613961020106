"""Damaged inputs from good ones, by a seeded generator: of bytes, and of values as JSON and YAML have them. Pure."""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Sequence
from typing import Any

_NUMBERS = (0, 1, 2, 4, 7, 8, 9, 127, 128, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1)
LEAVES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3.5, 2**31, 2**63, 2**64, 10**400, -0.0, 1e-320, 1e308, float("nan"), float("inf"), "",
    " ", "a", "A b", "\x00", "\n", ";", ":", "unknown", "lt30", "age", "9" * 300, "é\u2028\u202e", "<|im_end|>", "../../x",
    "(?P<group>(a+)+$)", "(?P<group>", "2024-02-30", [], {}, [[]], [0], ["a", "a"], {"a": 1}, {"": {}},
)  # fmt: skip


def mutate_bytes(rng: random.Random, data: bytes, words: Sequence[bytes] = (), others: Sequence[bytes] = ()) -> bytes:
    """One to four edits of ``data``.

    Args:
      words: that mean something in this format, to be put in.
      others: inputs of which a part may be put in.
    """
    for _ in range(rng.choice((1, 1, 2, 3, 4))):
        at, to = sorted((rng.randint(0, len(data)), rng.randint(0, len(data))))
        near = min(len(data), at + rng.choice((1, 2, 4, 8, 16)))
        edit = rng.randrange(9)
        if edit == 0:
            data = data[:at] + bytes(b ^ (1 << rng.randrange(8)) for b in data[at : at + 1]) + data[at + 1 :]
        elif edit == 1:
            number = rng.choice(_NUMBERS)
            new = struct.pack("<Q", number)[: rng.choice((1, 2, 4, 8))]
            data = data[:at] + new + data[at + len(new) :]
        elif edit == 2:
            data = data[:at] + data[near:]
        elif edit == 3:
            data = data[:at] + data[at:near] * rng.choice((2, 3, 50)) + data[near:]
        elif edit == 4:
            data = data[:at] + rng.randbytes(near - at) + data[near:]
        elif edit == 5 and words:
            data = data[:at] + rng.choice(words) + data[at:]
        elif edit == 6 and others:
            other = rng.choice(others)
            start = rng.randint(0, len(other))
            data = data[:at] + other[start : start + rng.randint(0, 64)] + data[at:]
        elif edit == 7:
            data = data[:to]
        else:
            data = data[:at] + data[at:to][::-1] + data[to:] if to - at < 32 else data
    return data


def mutate_value(rng: random.Random, value: Any) -> Any:
    """One to three edits somewhere in a tree of dicts and lists; ``value`` stays as it is."""
    root = [copy.deepcopy(value)]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        holder, key = rng.choice(_places(root))
        edit = rng.randrange(7)
        if edit <= 2:
            holder[key] = copy.deepcopy(rng.choice(LEAVES))
        elif edit == 3 and holder is not root:
            del holder[key]
        elif edit == 4:
            holder[key] = [holder[key]] * rng.choice((1, 2))
        elif edit == 5:
            other, place = rng.choice(_places(root))
            holder[key] = copy.deepcopy(other[place])
        elif isinstance(holder, dict):
            holder[rng.choice(("", "a", "name", "kind", "column", "\x00", "Age", str(key).upper()))] = holder[key]
        else:
            holder.insert(key, copy.deepcopy(holder[key]))
        root = root[:1]
    return root[0]


def _places(node: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    queue = [node]
    while queue:
        holder = queue.pop()
        for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
            found.append((holder, key))
            if isinstance(holder[key], (dict, list)):
                queue.append(holder[key])
    return found


def as_json(value: Any) -> bytes:
    """JSON with what JSON has not: NaN, infinities, lone surrogates."""
    return json.dumps(value).encode()
