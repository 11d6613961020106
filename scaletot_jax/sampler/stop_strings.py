"""Stop strings on the device: an Aho-Corasick matcher over bytes, tabulated over whole tokens.

A stop string may begin in the middle of one token and end in the middle of another. The matcher's state is how much of
some stop string the text so far ends with; a token moves it by all of its bytes at once, so a table [states, V] suffices
and no text is decoded while sampling (Aho and Corasick, 1975).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scaletot_jax.errors import DataError


def stop_table(strings: Sequence[str], vocabulary: Sequence[bytes]) -> np.ndarray:
    """The matcher of a set of stop strings.

    Args:
      strings: none of them empty.
      vocabulary: the bytes of each token; a control token has none.

    Returns:
      [M, V] int16: the state after each token. State 0 is "nothing matched", the last state M − 1 is "a stop string has
      occurred" and is never left.

    Raises:
      DataError: an empty stop string, or too long ones.
    """
    patterns = [text.encode() for text in strings]
    if not patterns or any(not pattern for pattern in patterns):
        raise DataError("a stop string is empty", where="stop strings", do="leave it out")
    if sum(map(len, patterns)) > 4096:
        raise DataError("the stop strings are too long", where="stop strings", why="they hold more than 4,096 bytes")
    moves = _byte_moves(patterns)
    lengths = np.asarray([len(word) for word in vocabulary])
    width = int(lengths.max(initial=0))
    letters = np.zeros((len(vocabulary), max(1, width)), np.uint8)
    for row, word in zip(letters, vocabulary):
        row[: len(word)] = np.frombuffer(word, np.uint8)
    table = np.repeat(np.arange(len(moves), dtype=np.int16)[:, None], len(vocabulary), axis=1)
    for place in range(width):
        longer = np.flatnonzero(lengths > place)
        table[:, longer] = moves[table[:, longer], letters[longer, place]]
    return table


def _byte_moves(patterns: Sequence[bytes]) -> np.ndarray:
    """[M, 256] int16 transitions; the last state absorbs."""
    children: list[dict[int, int]] = [{}]
    final = {0: False}
    for pattern in patterns:
        node = 0
        for byte in pattern:
            if byte not in children[node]:
                children.append({})
                children[node][byte] = len(children) - 1
                final[len(children) - 1] = False
            node = children[node][byte]
        final[node] = True
    count = len(children)
    moves = np.zeros((count, 256), np.int64)
    back = np.zeros(count, np.int64)
    order = [0]
    for node in order:  # breadth first, so the shorter suffix is finished before
        moves[node] = moves[back[node]] if node else 0
        for byte, child in children[node].items():
            back[child] = moves[back[node], byte] if node else 0
            final[child] = final[child] or final[int(back[child])]
            moves[node, byte] = child
            order.append(child)
    ends = np.asarray([final[node] for node in range(count)])
    number = np.full(count, -1)
    number[~ends] = np.arange(np.sum(~ends))
    number[ends] = np.sum(~ends)
    kept = number[moves[~ends]]
    return np.concatenate([kept, np.full((1, 256), np.sum(~ends))]).astype(np.int16)
