"""The limits of one profile's search, and the ledger that keeps them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol


class Reply(Protocol):
    """Whatever answers a call: it says how many tokens it took."""

    @property
    def tokens(self) -> int: ...


@dataclass(frozen=True)
class Bounds:
    """Limits of one profile's search; the names are those of the configuration's teacher section."""

    beam: int = 2
    candidates: int = 3
    min_gain: float = 0.05
    max_refined_nodes: int = 3
    max_samples: int = 45
    max_calls: int = 24
    max_tokens: int = 4096
    deadline_s: float = 0.0  # 0: none


@dataclass
class Ledger:
    """What has been spent, and whether more may be."""

    bounds: Bounds
    clock: Callable[[], float]
    calls: int = 0
    tokens: int = 0
    samples: int = 0
    refined: int = 0
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.clock()

    def allows(self, calls: int, tokens: int, samples: int = 0) -> bool:
        late = self.bounds.deadline_s > 0 and self.clock() - self.started >= self.bounds.deadline_s
        return (
            not late
            and self.calls + calls <= self.bounds.max_calls
            and self.tokens + tokens <= self.bounds.max_tokens
            and self.samples + samples <= self.bounds.max_samples
        )

    def charge(self, replies: Sequence[Reply], announced: int, samples: int) -> None:
        spent = sum(reply.tokens for reply in replies)
        if spent > announced:
            raise ValueError(f"replies cost {spent} tokens, but at most {announced} were announced before the call")
        self.calls += len(replies)
        self.tokens += spent
        self.samples += samples
