"""The sampler: requests in, annotated continuations out, for one language model.

    sampler = Sampler(params, config, [free_text([eos])], Sizes(groups=4, branches=8, prompt=512, new=64))
    for index, samples in sampler.generate([Request(prompt, key) for prompt, key in ...]):
        ...

The host only hands requests in and takes results out. A prompt is run once and forked; decoding runs on the device until
all branches of some prompt have ended, whose place then goes to the next request of the queue. A request's tokens depend on
its own prompt, key and settings alone, not on what else is in the batch, as far as floating-point sums allow: rows of a
matrix product are independent, but a library may sum in another order for another number of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from scaletot_jax.errors import DataError
from scaletot_jax.lm import model
from scaletot_jax.lm.config import LMConfig
from scaletot_jax.parallel.sharding import ShardingRules
from scaletot_jax.sampler import decode as decoding
from scaletot_jax.sampler import slots as storage
from scaletot_jax.sampler.constraint import Automaton, join
from scaletot_jax.sampler.slots import Settings, Sizes, Slots

BUCKETS = (
    32,
    64,
    96,
    128,
    192,
    256,
    384,
    512,
    768,
    1024,
    1536,
    2048,
    3072,
    4096,
    8192,
)  # lengths prompts are padded to
REASONS = {storage.CLOSED: "closed", storage.BUDGET: "budget", storage.STOPPED: "stopped"}


class Request(NamedTuple):
    """n continuations of one prompt.

    Attributes:
      prompt: token ids.
      key: random key; branch i uses ``fold_in(key, i)``.
      limit: tokens a branch may write; 0 = as many as the sampler has room for.
      temperature: ≥ 0; 0 is greedy. top_k: 0 = off. top_p: 1 = off.
      automaton: which of the sampler's automata constrains the text.
      start: state of that automaton; −1 = its start.
      goal: a state of it at which a branch is complete, besides its end; −1 = none.
      stops: which of the sampler's sets of stop strings ends a branch; −1 = none.
    """

    prompt: Sequence[int]
    key: jax.Array
    limit: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    automaton: int = 0
    start: int = -1
    goal: int = -1
    stops: int = -1


class Sample(NamedTuple):
    """One continuation of T tokens; the numbers are those of :class:`~scaletot_jax.sampler.slots.Trace`, each [T].

    ``reason``: ``closed`` (the constraint's end or goal, or a stop token), ``stopped`` (a stop string) or ``budget``.
    """

    tokens: np.ndarray
    logps: np.ndarray
    model_logps: np.ndarray
    model_entropy: np.ndarray
    entropy: np.ndarray
    reason: str


class Sampler:
    """A sampler with its storage.

    Args:
      params: the model; layers are unstacked, decoding reads them where they lie.
      config: its shape.
      automata: what may be asked for; see :mod:`scaletot_jax.sampler.constraint`.
      sizes: what is allocated.
      stop_sets: tables of :func:`~scaletot_jax.sampler.stop_strings.stop_table`.
      statistics: whether the model's own log-probability and entropy are kept.
      filters: whether requests may use top-k and top-p.
      mesh, rules: where the caches lie: prompts and rows over the batch axes, heads over the tensor axis, each where it
        divides. ``params`` are taken as they are placed.
    """

    def __init__(
        self,
        params: model.Params,
        config: LMConfig,
        automata: Sequence[Automaton],
        sizes: Sizes,
        *,
        stop_sets: Sequence[np.ndarray] = (),
        statistics: bool = True,
        filters: bool = False,
        mesh: Mesh | None = None,
        rules: ShardingRules | None = None,
    ):
        if min(sizes) < 1:
            raise DataError("a size of the sampler is below 1", where="Sizes", why=str(sizes))
        self.config, self.sizes = config, sizes
        self.params = model.unstack_layers(params)
        self._automata = tuple(automata)
        self.constraint, kinds, self._offsets = join(automata, config.vocab_size)
        features = decoding.Features(kinds, filters, filters, bool(stop_sets), statistics)
        self._filters, self._num_stops = filters, len(stop_sets)
        self._stops = jnp.asarray(_stack_tables(stop_sets, config.vocab_size))
        dtype = self.params["layers"][0]["k"].dtype
        slots = storage.empty(config, sizes, dtype)
        placed: dict[str, Any] = {}
        if mesh is not None:
            shardings = slot_shardings(slots, mesh, rules or ShardingRules())
            slots = jax.device_put(slots, shardings)
            placed = {"out_shardings": shardings}
        self.slots: Slots = slots
        self._held: list[tuple[int, ...] | None] = [None] * sizes.groups  # the prompt each group holds

        def jit(function, *static):
            return jax.jit(function, static_argnames=static, donate_argnames="slots", **placed)

        self._fill = jit(_fill, "config")
        self._begin = jit(storage.begin)
        self._adopt = jit(storage.adopt)
        self._copy = jit(storage.copy_prompt)
        self._decode = partial(jit(_decode, "config", "features", "until_group"), config=config, features=features)

    # -- one group at a time: what a tree search needs -----------------------------------------------------------------

    def fill(self, group: int, prompt: Sequence[int]) -> None:
        """Runs a prompt into a group, unless the group holds that very prompt already.

        Raises:
          DataError: the prompt is empty, too long, or holds an id that the model does not have.
        """
        ids = tuple(int(token) for token in prompt)
        if self._held[group] == ids:
            return
        self._check_prompt(ids)
        width = next((b for b in BUCKETS if len(ids) <= b <= self.sizes.prompt), self.sizes.prompt)
        tokens = np.zeros(width, np.int32)
        tokens[: len(ids)] = ids
        self._held[group] = None
        self.slots = self._fill(self.params, self.config, self.slots, group, tokens, len(ids))
        self._held[group] = ids

    def begin(self, group: int, request: Request) -> None:
        """Forks a group's branches from the end of the prompt it holds; ``request.prompt`` is not looked at."""
        self.slots = self._begin(self.slots, group, self._settings(request))

    def decode(self, groups: Sequence[int], *, wait_for_all: bool = True) -> list[int]:
        """Decodes until all of ``groups`` have ended, or with ``wait_for_all=False`` any; returns those that have."""
        occupied = np.zeros(self.sizes.groups, bool)
        occupied[list(groups)] = True
        self.slots = self._decode(
            self.params,
            constraint=self.constraint,
            stops=self._stops,
            slots=self.slots,
            occupied=occupied,
            until_group=not wait_for_all,
        )
        running = np.asarray(self.slots.reason).reshape(self.sizes.groups, -1) == storage.RUNNING
        return [group for group in groups if not running[group].any()]

    def read(self, group: int) -> list[Sample]:
        """What a group's branches wrote."""
        n = self.sizes.branches
        rows = slice(group * n, (group + 1) * n)
        tokens, logps, model_logps, model_entropy, entropy = (np.asarray(kept[rows]) for kept in self.slots.trace)
        written, reason = np.asarray(self.slots.written[rows]), np.asarray(self.slots.reason[rows])
        return [
            Sample(
                tokens[i, : written[i]],
                logps[i, : written[i]],
                model_logps[i, : written[i]],
                model_entropy[i, : written[i]],
                entropy[i, : written[i]],
                REASONS.get(int(reason[i]), "running"),
            )
            for i in range(n)
        ]

    def adopt(self, group: int, branch: int) -> None:
        """Makes a branch's text part of its group's prompt, without running it again.

        Raises:
          DataError: the prompt has no room left for a whole ring of columns.
        """
        held = self._held[group]
        assert held is not None, "a group that holds no prompt has no branch to adopt"
        if len(held) + self.sizes.new > self.sizes.prompt:
            raise DataError(
                "the prompt's storage is full",
                where=f"group {group}",
                why=f"{len(held)} tokens, and {self.sizes.new} slots are needed behind them; there are {self.sizes.prompt}",
                do="raise Sizes.prompt",
            )
        row = group * self.sizes.branches + branch
        tokens = np.asarray(self.slots.trace.tokens[row])[: int(self.slots.written[row])]
        self.slots = self._adopt(self.slots, group, branch)
        self._held[group] = (*held, *tokens.tolist())

    def copy_prompt(self, source: int, target: int) -> None:
        """Makes ``target`` hold what ``source`` holds."""
        self.slots = self._copy(self.slots, source, target)
        self._held[target] = self._held[source]

    def forget(self) -> None:
        """Makes every group run its next prompt, even one it holds."""
        self._held = [None] * self.sizes.groups

    # -- a queue -------------------------------------------------------------------------------------------------------

    def generate(self, requests: Iterable[Request]) -> Iterator[tuple[int, list[Sample]]]:
        """Serves a queue of requests.

        Yields:
          (index of the request, its n samples) as soon as a request is complete, so that the caller can store it.

        Raises:
          DataError: a request cannot be served; those before it in the queue have been.
        """
        waiting = enumerate(requests)
        serving: dict[int, int] = {}  # group -> request
        more = True
        while True:
            while more and len(serving) < self.sizes.groups:
                item = next(waiting, None)
                if item is None:
                    more = False
                    break
                index, request = item
                free = [group for group in range(self.sizes.groups) if group not in serving]
                held = tuple(int(token) for token in request.prompt)
                group = next((g for g in free if self._held[g] == held), free[0])
                self.fill(group, held)
                self.begin(group, request)
                serving[group] = index
            if not serving:
                return
            for group in self.decode(sorted(serving), wait_for_all=not more):
                yield serving.pop(group), self.read(group)

    def _settings(self, request: Request) -> Settings:
        if not 0 <= request.automaton < len(self._automata):
            raise DataError("a request asks for an automaton that does not exist", where=f"{request.automaton}")
        if not -1 <= request.stops < self._num_stops:
            raise DataError("a request asks for stop strings that do not exist", where=f"stops={request.stops}")
        if (request.top_k or request.top_p < 1) and not self._filters:
            raise DataError("a request uses top-k or top-p", where="Request", do="build the sampler with filters=True")
        bad = request.temperature < 0 or request.top_k < 0 or not 0 < request.top_p <= 1
        if bad or not 0 <= request.limit <= self.sizes.new:
            raise DataError(
                "a request's settings are out of range",
                where="Request",
                why=f"temperature={request.temperature}, top_k={request.top_k}, top_p={request.top_p}, "
                f"limit={request.limit} of at most {self.sizes.new}",
            )
        automaton, offset = self._automata[request.automaton], self._offsets[request.automaton]
        start = automaton.start if request.start < 0 else request.start
        return Settings(
            state=jnp.int32(start + offset if start else 0),
            goal=jnp.int32(request.goal + offset if request.goal > 0 else -1),
            limit=jnp.int32(request.limit or self.sizes.new),
            temperature=jnp.float32(request.temperature),
            top_k=jnp.int32(request.top_k),
            top_p=jnp.float32(request.top_p),
            stops=jnp.int32(request.stops),
            key=request.key,
        )

    def _check_prompt(self, ids: tuple[int, ...]) -> None:
        if not 1 <= len(ids) <= self.sizes.prompt:
            raise DataError(
                "a prompt does not fit the sampler",
                where="Request.prompt",
                why=f"{len(ids)} tokens; 1 to {self.sizes.prompt} fit",
                do="raise Sizes.prompt or shorten the prompt",
            )
        if min(ids) < 0 or max(ids) >= self.config.vocab_size:
            raise DataError(
                "a prompt holds an id that the model does not have",
                where="Request.prompt",
                why=f"ids {min(ids)}..{max(ids)}, the vocabulary has {self.config.vocab_size}",
            )


def slot_shardings(slots: Slots, mesh: Mesh, rules: ShardingRules) -> Slots:
    """Caches split over batch and heads where the sizes divide; everything small is on every device."""
    parts = dict(zip(mesh.axis_names, mesh.devices.shape))

    def divides(size: int, axis: Any) -> bool:
        axes = (axis,) if isinstance(axis, str) else tuple(axis or ())
        return size % int(np.prod([parts[name] for name in axes])) == 0

    def place(array: jax.Array) -> NamedSharding:
        if array.ndim != 4:
            return NamedSharding(mesh, rules.spec())
        batch = "batch" if divides(array.shape[0], rules.batch) else None
        heads = "heads" if divides(array.shape[1], rules.heads) else None
        return NamedSharding(mesh, rules.spec(batch, heads, None, None))

    return jax.tree.map(place, slots)


def _fill(params, config, slots, group, tokens, length):
    return decoding.fill(params, config, slots, group, tokens, length)


def _decode(params, config, constraint, stops, slots, occupied, features, until_group):
    return decoding.decode(
        params, config, constraint, stops, slots, occupied, features=features, until_group=until_group
    )


def _stack_tables(tables: Sequence[np.ndarray], vocab_size: int) -> np.ndarray:
    """[Z, M, V] int16, shorter tables padded so that the last state is the accepting one of each."""
    height = max((len(table) for table in tables), default=1)
    out = np.zeros((max(1, len(tables)), height, vocab_size if tables else 1), np.int16)
    for into, table in zip(out, tables):
        states, words = table.shape
        accept = states - 1
        moved = np.where(table == accept, height - 1, table)
        into[:accept, :words] = moved[:accept]
        into[height - 1] = height - 1
    return out
