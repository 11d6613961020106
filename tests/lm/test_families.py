"""Every family against transformers in float32: whole, padded, packed, cached; read from and written to its files."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lm import family_models

from scaletot_jax.lm.cache import extend, prefill
from scaletot_jax.lm.head import logits
from scaletot_jax.lm.huggingface import load_directory
from scaletot_jax.lm.model import forward, unstack_layers
from scaletot_jax.lm.save import save_directory

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

ROWS, LENGTH = 3, 21
LENGTHS = np.array([LENGTH, 13, 6])  # all longer than the windows
TOKENS = np.random.default_rng(0).integers(2, 67, (ROWS, LENGTH))


@functools.partial(jax.jit, static_argnums=1)
def _logits(params, config, tokens, valid, positions, mask):
    out = forward(params, config, tokens, valid=valid, positions=positions, mask=mask)
    return logits(params, config, out.hidden)


@pytest.fixture(scope="module", params=family_models.CASES)
def model(request, tmp_path_factory):
    """transformers' model, and ours as read from the shards it wrote."""
    directory = tmp_path_factory.mktemp("family")
    reference = family_models.write(directory, request.param)
    assert len(list(directory.glob("model-*.safetensors"))) > 1
    return reference, *load_directory(directory)


def _reference(model, tokens, **more):
    with torch.no_grad():
        return model(torch.tensor(tokens), **{k: torch.tensor(v) for k, v in more.items()}).logits.numpy()


def _run(config, params, tokens, valid=None, positions=None, mask=None):
    """Ours, always with all three arrays: one program for every test."""
    rows, length = tokens.shape
    valid = np.ones((rows, length), bool) if valid is None else valid
    positions = np.maximum(np.cumsum(valid, axis=1) - 1, 0) if positions is None else positions
    mask = np.tril(np.ones((rows, length, length), bool)) if mask is None else mask
    return np.asarray(_logits(params, config, *map(jnp.asarray, (tokens, valid, positions, mask))))


def test_whole_sequences(model):
    reference, config, params = model
    assert np.abs(_run(config, params, TOKENS) - _reference(reference, TOKENS)).max() < 1e-4


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(model, side):
    reference, config, params = model
    place = np.arange(LENGTH)[None]
    valid = place < LENGTHS[:, None] if side == "right" else place >= LENGTH - LENGTHS[:, None]
    positions = np.maximum(np.cumsum(valid, axis=1) - 1, 0)
    expected = _reference(reference, TOKENS, attention_mask=valid.astype(int), position_ids=positions)
    assert np.abs(_run(config, params, TOKENS, valid=valid) - expected)[valid].max() < 1e-4


def test_packed_sequences(model):
    reference, config, params = model
    owner = np.repeat([0, 1, 2], [8, 7, 6])
    positions = np.concatenate([np.arange(8), np.arange(7), np.arange(6)])
    mask = np.tril(owner[:, None] == owner[None])
    alike = [np.broadcast_to(array, (ROWS, *array.shape)) for array in (positions, mask)]
    found = _run(config, params, TOKENS, positions=alike[0], mask=alike[1])
    for part in range(3):
        piece = np.flatnonzero(owner == part)
        assert np.abs(found[:, piece] - _reference(reference, TOKENS[:, piece])).max() < 1e-4


def test_prefill_then_decode(model):
    """Right-padded prompts; then pairs of tokens written after them, then a pair that is only looked at."""
    reference, config, params = model
    prompt, lengths = 11, np.array([11, 8, 3])
    valid = np.arange(prompt) < lengths[:, None]
    more = TOKENS[:, prompt : prompt + 8]
    apart = unstack_layers(params)

    @jax.jit
    def first(params, tokens, valid):
        hidden, cache = prefill(params, config, tokens, valid, size=prompt + 9)
        return logits(params, config, hidden), cache

    @jax.jit
    def write(params, tokens, cache, at):
        hidden, cache = extend(params, config, tokens, cache, write_at=at)
        return logits(params, config, hidden), cache

    look = jax.jit(lambda params, tokens, cache: logits(params, config, extend(params, config, tokens, cache)[0]))
    start, cache = first(apart, jnp.asarray(TOKENS[:, :prompt]), jnp.asarray(valid))
    parts = []
    for at in range(0, 6, 2):
        out, cache = write(apart, jnp.asarray(more[:, at : at + 2]), cache, jnp.int32(prompt + at))
        parts.append(out)
    found = np.concatenate([*parts, look(apart, jnp.asarray(more[:, 6:]), cache)], axis=1)
    for row, length in enumerate(lengths):
        whole = _reference(reference, np.concatenate([TOKENS[row, :length], more[row]])[None])[0]
        assert np.abs(start[row, :length] - whole[:length]).max() < 1e-4
        assert np.abs(found[row] - whole[length:]).max() < 1e-4


def test_written_directory_is_the_same_model(model, tmp_path):
    """Ours, written; transformers reads it without a word of complaint and computes the same."""
    import transformers

    reference, config, params = model
    save_directory(tmp_path, config, params, max_shard_bytes=30_000)
    again_config, again = load_directory(tmp_path)
    assert again_config == config
    jax.tree.map(np.testing.assert_array_equal, again, params)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert type(theirs) is type(reference)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    np.testing.assert_array_equal(_reference(theirs, TOKENS), _reference(reference, TOKENS))
