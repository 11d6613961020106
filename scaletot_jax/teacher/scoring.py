"""Exact log-probabilities of allowed continuations, many alternatives in one call.

Token trees (:mod:`scaletot_jax.teacher.token_tree`) are packed into rows under an ancestor mask and run over cached
prefixes: the instruction is run once, each profile once, and scoring writes nothing to the cache.

Shapes are fixed: so many rows a call, tokens padded to multiples of 16, so few programs are compiled; and the layers are
scanned, so that each compiles in a second (calls are long enough to hide the copy of a layer's weights, which would
hurt a decoding loop). Padding and the other rows of a batch do not change a row; a job's shape depends on the job alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scaletot_jax.lm import model
from scaletot_jax.lm.config import LMConfig
from scaletot_jax.lm.head import candidate_log_probs
from scaletot_jax.lm.padding import bucket, round_up
from scaletot_jax.lm.rope import scan_kinds, view_at, views
from scaletot_jax.teacher.decoding import Decoded, decode_texts
from scaletot_jax.teacher.token_tree import Scores, TokenTree, read_values

_ROWS = 4  # rows of a call: enough work for the processor, few enough that the last call of a step wastes little
_UNIT = 16  # token and node counts are padded to multiples of this
_ALTERNATIVES = 8  # and alternatives to multiples of this
_CHUNK = 64  # rows whose logits over the vocabulary exist at a time


class Prefixes(NamedTuple):
    """Cached beginnings, read-only.

    Attributes:
      keys, values: [L, B, KV, S, hd], layers stacked for the scan.
      valid: [B, S] bool.
      seen: [B] int32, valid tokens, which is the position of the next one.
    """

    keys: jax.Array
    values: jax.Array
    valid: jax.Array
    seen: jax.Array


class Job(NamedTuple):
    """One tree to be scored after the profile in row ``row`` of the prefixes."""

    row: int
    tree: TokenTree


class TextJob(NamedTuple):
    """One text to be written after the profile in row ``row`` and the ids that lead to it."""

    row: int
    lead: tuple[int, ...]


class Scorer:
    """A language model with one instruction, ready to score token trees after batches of profiles.

    Args:
      params, config: the model, layers stacked.
      instruction: ids of the fixed first part; run once.
      max_profile_tokens: most tokens of a profile.
      batch_size: B, most profiles whose prefixes are held at once.

    Attributes:
      calls, tokens, padded: programs run, real tokens run (without the instruction's), and tokens with padding.
    """

    def __init__(
        self, params: Any, config: LMConfig, *, instruction: Sequence[int], max_profile_tokens: int, batch_size: int
    ):
        self.batch_size = batch_size
        self.calls = self.tokens = self.padded = 0
        self._params, self._config, self._longest = params, config, max_profile_tokens
        tokens = np.asarray([instruction], np.int32)
        shape = (config.num_layers, 1, config.num_kv_heads, 0, config.head_dim)
        nothing = Prefixes(jnp.zeros(shape), jnp.zeros(shape), jnp.zeros((1, 0), bool), jnp.zeros(1, jnp.int32))
        self._instruction = _extend(params, config, nothing, tokens, np.ones(tokens.shape, bool), len(instruction))
        self._slots = len(instruction) + round_up(max_profile_tokens, _UNIT)  # one size, whatever the profiles

    def prefix(self, profiles: Sequence[Sequence[int]]) -> Prefixes:
        """Runs up to B profiles after the instruction; the padded length is that of the longest."""
        if not 0 < len(profiles) <= self.batch_size:
            raise ValueError(f"{len(profiles)} profiles for a batch of {self.batch_size}")
        longest = max(map(len, profiles))
        if longest > self._longest:
            raise ValueError(f"a profile of {longest} tokens, but at most {self._longest} were announced")
        length, parts = padded_length(longest), []
        for start in range(0, len(profiles), _ROWS):
            tokens = np.zeros((_ROWS, length), np.int32)
            valid = np.zeros((_ROWS, length), bool)
            for i, ids in enumerate(profiles[start : start + _ROWS]):
                tokens[i, : len(ids)] = ids
                valid[i, : len(ids)] = True
            parts.append(_extend(self._params, self._config, self._instruction, tokens, valid, self._slots))
            self._count(int(valid.sum()), valid.size)
        unused = round_up(self.batch_size, _ROWS) // _ROWS - len(parts)  # one shape, however many profiles there are
        parts += [jax.tree.map(jnp.zeros_like, parts[0])] * unused
        return _join(parts)

    def score(self, prefixes: Prefixes, jobs: Sequence[Job]) -> list[list[Scores]]:
        """Scores every job, in order; jobs of the same padded shape share calls."""
        out: list[list[Scores]] = [[] for _ in jobs]
        shapes = [_shape(job.tree) for job in jobs]
        for shape in sorted(set(shapes)):
            members = [i for i, s in enumerate(shapes) if s == shape]
            for start in range(0, len(members), _ROWS):
                chunk = members[start : start + _ROWS]
                for i, scores in zip(chunk, self._run(prefixes, [jobs[i] for i in chunk], shape)):
                    out[i] = scores
        return out

    def write(
        self, prefixes: Prefixes, jobs: Sequence[TextJob], *, close: int, reserved: np.ndarray, max_tokens: int
    ) -> list[Decoded]:
        """Decodes every job's text, in order; jobs whose leads are padded alike share calls.

        Args:
          close: id that ends a text. reserved: [V] bool, ids that are no text. max_tokens: most tokens of a text.

        Returns:
          One :class:`~scaletot_jax.teacher.decoding.Decoded` a job, of NumPy values without the row dimension.
        """
        out: list[Decoded | None] = [None] * len(jobs)
        lengths = [bucket(len(job.lead), 2 * _UNIT) for job in jobs]
        room = bucket(max_tokens, _UNIT)
        rows = prefixes.valid.shape[0]
        for length in sorted(set(lengths)):
            members = [i for i, n in enumerate(lengths) if n == length]
            for start in range(0, len(members), rows):
                chunk = members[start : start + rows]
                take, lead = np.zeros(rows, np.int32), np.zeros((rows, length), np.int32)
                valid = np.zeros((rows, length), bool)
                for i in range(rows):  # a short chunk is filled up with its first job, whose length counts for no more
                    job = jobs[chunk[i] if i < len(chunk) else chunk[0]]
                    take[i], lead[i, : len(job.lead)], valid[i, : len(job.lead)] = job.row, job.lead, True
                place = (np.int32(close), reserved, np.int32(max_tokens))
                found = decode_texts(self._params, self._config, prefixes, take, lead, valid, *place, room=room)
                found = jax.tree.map(np.asarray, found)
                written = int(found.length[: len(chunk)].sum())
                self._count(int(valid[: len(chunk)].sum()) + written, rows * (length + room))
                for i, job_number in enumerate(chunk):
                    out[job_number] = Decoded(*(part[i] for part in found))
        return [decoded for decoded in out if decoded is not None]

    def _run(self, prefixes: Prefixes, jobs: Sequence[Job], shape: tuple[int, int, int, bool]) -> list[list[Scores]]:
        batch, (length, rows, width, full) = _ROWS, shape
        take = np.zeros(batch, np.int32)
        tokens = np.zeros((batch, length), np.int32)
        depth = np.zeros((batch, length), np.int32)
        mask = np.zeros((batch, length, length), bool)
        nodes = np.zeros((batch, rows), np.int32)
        candidates = np.full((batch, rows, width), -1, np.int32)
        for i, (row, tree) in enumerate(jobs):
            t, (r, a) = len(tree.tokens), tree.candidates.shape
            take[i], tokens[i, :t], depth[i, :t], mask[i, :t, :t] = row, tree.tokens, tree.depth, tree.ancestors
            nodes[i, :r], candidates[i, :r, :a] = tree.nodes, tree.candidates
        self._count(sum(len(job.tree.tokens) for job in jobs), batch * length)
        arrays = (take, tokens, depth, mask, nodes, candidates)
        sums, local = (np.asarray(x) for x in _score(self._params, self._config, prefixes, *arrays, full))
        return [read_values(job.tree, sums[i], local[i]) for i, job in enumerate(jobs)]

    def _count(self, tokens: int, padded: int) -> None:
        self.calls += 1
        self.tokens += tokens
        self.padded += padded


def padded_length(tokens: int) -> int:
    """The length at which a profile or tree of ``tokens`` tokens runs."""
    return round_up(tokens, _UNIT)


def _shape(tree: TokenTree) -> tuple[int, int, int, bool]:
    """Padded (T, R, A) and whether the vocabulary is needed: what selects the compiled program."""
    rows, width = tree.candidates.shape
    return padded_length(len(tree.tokens)), round_up(rows, _UNIT), round_up(width, _ALTERNATIVES), tree.full


@jax.jit
def _join(parts):
    """Prefixes of several calls as one."""
    keys, values = (jnp.concatenate([part[i] for part in parts], axis=1) for i in (0, 1))
    valid, seen = (jnp.concatenate([part[i] for part in parts]) for i in (2, 3))
    return Prefixes(keys, values, valid, seen)


@partial(jax.jit, static_argnames=("config", "slots"))
def _extend(params, config, before, tokens, valid, slots):
    """Prefixes of ``slots`` slots with tokens [B, T] after those of ``before`` (of one row, shared by all)."""
    batch, length = tokens.shape
    old = before.valid.shape[1]
    take = jnp.zeros(batch, jnp.int32)
    offsets = model.default_positions(valid)
    mask = jnp.tril(jnp.ones((1, length, length), bool)) & valid[:, None, :]
    _, (keys, values) = _layers(params, config, before, take, tokens, offsets, mask)
    room = ((0, 0),) * 3 + ((0, slots - old - length), (0, 0))
    shared = [jnp.repeat(leaf, batch, axis=1) for leaf in (before.keys, before.values)]
    keys, values = (jnp.pad(jnp.concatenate([a, b], axis=3), room) for a, b in zip(shared, (keys, values)))
    known = jnp.concatenate([jnp.repeat(before.valid, batch, axis=0), valid], axis=1)
    return Prefixes(
        keys,
        values,
        jnp.pad(known, ((0, 0), (0, slots - old - length))),
        before.seen[take] + valid.sum(axis=1, dtype=jnp.int32),
    )


@partial(jax.jit, static_argnames=("config", "full"))
def _score(params, config, prefixes, take, tokens, depth, mask, nodes, candidates, full):
    """Log-probabilities [B, R, A] over the vocabulary (zeros unless ``full``) and over the alternatives."""
    hidden, _ = _layers(params, config, prefixes, take, tokens, depth, mask)
    read = jnp.take_along_axis(hidden, nodes[..., None], axis=1)
    states, listed = read.reshape(-1, read.shape[-1]), candidates.reshape(-1, candidates.shape[-1])

    def log_probs(normalise):
        out = candidate_log_probs(params, config, states, listed, normalise=normalise, chunk=_CHUNK)
        return jnp.where(listed >= 0, out, 0.0).reshape(candidates.shape)

    local = log_probs("candidates")
    return (log_probs("full") if full else jnp.zeros_like(local)), local


def _layers(params, config, prefixes, take, tokens, offsets, mask):
    """Tokens [B, T] through the model after row ``take[b]`` of the prefixes.

    A token sees every valid slot of its prefix, and of the new tokens what ``mask`` [B or 1, T, T] allows; ``offsets``
    [B, T] count positions from the prefix's end.

    Returns:
      hidden [B, T, D] after the final norm, and the new tokens' keys and values [L, B, KV, T, hd].
    """
    batch, length = tokens.shape
    known = prefixes.valid[take]
    visible = jnp.broadcast_to(known[:, None, :], (batch, length, known.shape[1]))
    visible = jnp.concatenate([visible, jnp.broadcast_to(mask, (batch, length, length))], axis=2)
    positions = prefixes.seen[take][:, None] + offsets
    slots = jnp.concatenate([model.default_positions(known), positions], axis=1)
    seen = views(config, visible, positions, slots)

    def layer(x, inputs):
        weights, old_keys, old_values, kind = inputs
        view = view_at(seen, kind)

        def attend(q, k, v):
            keys, values = (jnp.concatenate([old[take], new], axis=2) for old, new in ((old_keys, k), (old_values, v)))
            return model.attention(q, keys, values, view.mask), (k, v)

        return model.block(weights, config, x, view.rotation, attend, None, 1.0)

    inputs = (params["layers"], prefixes.keys, prefixes.values, scan_kinds(config))
    x, new = jax.lax.scan(layer, model.embed(params, tokens, config), inputs)
    return model.finish(params, config, x), new
