"""The teacher's own text: greedy, with the model's own doubt, and nobody else's business."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaletot_jax.chains.reserved import reserved_ids
from scaletot_jax.lm.head import logits
from scaletot_jax.lm.model import forward
from scaletot_jax.teacher.backend import Backend
from scaletot_jax.teacher.dialogue import TextRequest
from scaletot_jax.teacher.scoring import Scorer, TextJob
from scaletot_jax.teacher.store import Store

INSTRUCTION = "Below is what is known about one user.\n"
PROFILES = (
    "Age: 35-44\nActivity: 7 clicks on 2 days (low)\n",
    "Region: North West\nActivity: none\n",
    "Activity: daily\n",
)
LEADS = (("Why:",), ("Context:", " settled", "\n", "Why:"), ("Context:", " couple", ";", " music", "\n", "Why:"))
LIMIT = 6


def ids(lm, *pieces):
    return tuple(token for piece in pieces for token in lm.tokenizer.encode(piece))


def scorer_of(lm):
    return Scorer(lm.params, lm.config, instruction=ids(lm, INSTRUCTION), max_profile_tokens=64, batch_size=4)


@pytest.fixture(scope="module")
def scorer(tiny_lm):
    return scorer_of(tiny_lm)


def mask(lm, allowed=None):
    """[V] reserved; ``allowed`` words alone may be written, so that a random model closes its texts early, too."""
    out = np.zeros(lm.config.vocab_size, bool)
    out[list(reserved_ids(lm.tokenizer, lm.config.vocab_size))] = True
    if allowed:
        keep = [ids(lm, f" {word}")[0] for word in allowed]
        out[:] = True
        out[keep] = False
    return out


_hidden = jax.jit(
    lambda params, config, tokens, valid: forward(params, config, tokens, valid=valid).hidden, static_argnums=1
)


def plain(lm, prefix, reserved, close):
    """One forward pass a token, float64 softmax."""
    written, log_probs, entropies = [], [], []
    while len(written) < LIMIT:
        tokens = jnp.zeros((1, 96), jnp.int32).at[0, : len(prefix) + len(written)].set(jnp.asarray([*prefix, *written]))
        hidden = _hidden(lm.params, lm.config, tokens, jnp.arange(96)[None] < len(prefix) + len(written))
        z = np.asarray(logits(lm.params, lm.config, hidden[0, len(prefix) + len(written) - 1]), np.float64)
        own = z - z.max() - np.log(np.exp(z - z.max()).sum())
        choice = int(np.argmax(np.where(reserved & (np.arange(len(z)) != close), -np.inf, z)))
        if choice == close:
            return written, log_probs, entropies, True
        written.append(choice)
        log_probs.append(own[choice])
        entropies.append(-(np.exp(own) * own).sum())
    return written, log_probs, entropies, False


@pytest.mark.parametrize("words", [None, ("music", "sport")], ids=["vocabulary", "few words"])
def test_a_text_is_the_plain_models_greedy_continuation(tiny_lm, scorer, words):
    (close,) = ids(tiny_lm, "\n")
    prefixes = scorer.prefix([ids(tiny_lm, p) for p in PROFILES])
    jobs = [TextJob(row, ids(tiny_lm, *lead)) for row in range(3) for lead in LEADS]
    found = scorer.write(prefixes, jobs, close=close, reserved=mask(tiny_lm, words), max_tokens=LIMIT)
    lengths = set()
    for job, text in zip(jobs, found, strict=True):
        prefix = (*ids(tiny_lm, INSTRUCTION), *ids(tiny_lm, PROFILES[job.row]), *job.lead)
        written, log_probs, entropies, closed = plain(tiny_lm, prefix, mask(tiny_lm, words), close)
        count = int(text.length)
        assert text.tokens[:count].tolist() == written and bool(text.closed) == closed
        np.testing.assert_allclose(text.log_probs[:count], log_probs, atol=1e-4)
        np.testing.assert_allclose(text.entropies[:count], entropies, atol=1e-4)
        assert not text.tokens[count:].any() and not text.log_probs[count:].any()
        lengths.add(count)
    assert LIMIT in lengths or words


def test_a_text_does_not_depend_on_its_batch(tiny_lm, scorer):
    (close,) = ids(tiny_lm, "\n")
    settings = dict(close=close, reserved=mask(tiny_lm), max_tokens=LIMIT)
    profiles = [ids(tiny_lm, p) for p in PROFILES]
    jobs = [TextJob(row, ids(tiny_lm, *lead)) for row in range(3) for lead in LEADS]
    whole = scorer.write(scorer.prefix(profiles), jobs, **settings)
    turned = scorer.prefix([profiles[2], profiles[0]])  # padded to the same length, as the batches of a run are
    (alone,) = scorer.write(turned, [TextJob(0, jobs[7].lead)], **settings)
    for a, b in zip(whole[7], alone):
        np.testing.assert_array_equal(a, b)


def test_what_was_written_once_is_read_back(tiny_lm, tmp_path):
    encode, scorer = tiny_lm.tokenizer.encode, scorer_of(tiny_lm)
    settings = dict(identity="tiny", close=encode("\n")[0], decode=tiny_lm.tokenizer.decode, reserved=mask(tiny_lm))
    profiles = [ids(tiny_lm, p) for p in PROFILES]
    asked = [
        TextRequest(0, LEADS[0], "\n", LIMIT),
        TextRequest(2, LEADS[1], ";", 3),
        TextRequest(0, LEADS[0], "\n", LIMIT),
    ]
    with Store(tmp_path / "store.sqlite") as store:
        batch = Backend(scorer, store, encode, **settings).open(profiles)
        first = batch.write(asked)
        calls = scorer.calls
        assert first[0] == first[2] and batch.write(asked) == first and scorer.calls == calls  # not yet committed
        batch.commit()
    for draft, request in zip(first, asked):
        assert draft.tokens == len(ids(tiny_lm, *request.lead)) + len(draft.ids)
        assert len(draft.ids) == len(draft.log_probs) == len(draft.entropies) <= request.max_tokens
        assert draft.text == tiny_lm.tokenizer.decode(draft.ids)
    with Store(tmp_path / "store.sqlite") as store:
        assert Backend(None, store, encode, **settings).open(profiles).write(asked) == first
