"""How many users stand behind each record of a corpus that is to be shared: k-anonymity. Pure.

A record is k-anonymous where at least k users have it (Sweeney 2002, doi 10.1142/S0218488502001648). What is counted as a
record is the caller's: a profile, or the content of a chain.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

LEVELS = (2, 5, 10)


class Anonymity(NamedTuple):
    """Of one kind of record.

    Attributes:
      records: different ones.
      users: who has at least one of them.
      least: users of the rarest record; 0 where there is none.
      below: k → share of the users of whom at least one record is shared by fewer than k users.
    """

    records: int
    users: int
    least: int
    below: dict[int, float]


def anonymity(pairs: Iterable[tuple[Hashable, str]], levels: Sequence[int] = LEVELS) -> Anonymity:
    """Counts users by record.

    Args:
      pairs: a record and a user who has it, in any order and as often as they occur.
      levels: the k to be told of.
    """
    holders: dict[Hashable, set[str]] = {}
    for record, user in pairs:
        holders.setdefault(record, set()).add(user)
    users = set().union(*holders.values())
    rare = {k: set().union(*(who for who in holders.values() if len(who) < k)) for k in levels}
    least = min(map(len, holders.values()), default=0)
    return Anonymity(len(holders), len(users), least, {k: len(rare[k]) / max(1, len(users)) for k in levels})


def describe(name: str, found: Anonymity) -> str:
    """One line for people."""
    shares = ", ".join(f"{share:.1%} fewer than {k}" for k, share in found.below.items())
    return f"{found.records} {name} of {found.users} users: the rarest has {found.least}; users who share one with {shares}"
