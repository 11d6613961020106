"""Field dropout, row order and the segment-wise loss."""

import jax
import jax.numpy as jnp
import numpy as np

from scaletot_jax.encoder import train
from scaletot_jax.losses.distill import distill_loss


def test_field_dropout_has_the_stated_rates_and_withholds_early_fields_together():
    early = jnp.array([False, False, True, True, True])
    withheld = np.asarray(train.draw_withheld(jax.random.key(0), 40_000, early, 0.2))
    rate = withheld.mean(0)
    np.testing.assert_allclose(rate[:2], 0.2, atol=0.01)
    np.testing.assert_allclose(rate[2:], 1 - 0.8**2, atol=0.01)
    assert abs(withheld[:, 2:].all(1).mean() - (0.2 + 0.8 * 0.2**3)) < 0.01
    assert not np.asarray(train.draw_withheld(jax.random.key(0), 100, early, 0.0)).any()


def test_rows_are_distinct_and_a_function_of_the_step_alone():
    whole = train.draw_rows(3, 0, 4, users=20, batch_size=8)
    assert whole.shape == (4, train.CHECK_EVERY, 8)
    assert all(len(set(step)) == 8 for step in whole.reshape(-1, 8))
    np.testing.assert_array_equal(train.draw_rows(3, 2 * train.CHECK_EVERY, 2, users=20, batch_size=8), whole[2:])
    assert (train.draw_rows(4, 0, 4, users=20, batch_size=8) != whole).any()
    assert train.draw_rows(3, 0, 1, users=5, batch_size=8).shape == (1, train.CHECK_EVERY, 5)


def test_segments_of_different_widths_count_the_same():
    rng = np.random.default_rng(0)
    predicted = tuple(jnp.asarray(rng.normal(size=(9, d)), jnp.float32) for d in (4, 6, 4))
    targets = tuple(jnp.asarray(rng.normal(size=z.shape), jnp.float32) for z in predicted)
    loss, parts = jax.jit(train.distillation_loss)(predicted, targets)
    one_segment = jax.jit(lambda z, t: distill_loss(z[:, None], t[:, None]))
    alone = [one_segment(z, t) for z, t in zip(predicted, targets)]
    np.testing.assert_allclose(loss, np.mean([one[0] for one in alone]), rtol=1e-5)
    for name, value in parts.items():
        np.testing.assert_allclose(value, np.mean([one[1][name] for one in alone]), rtol=1e-5)
    error = np.mean([np.mean((z - t) ** 2) for z, t in zip(predicted, targets)])
    np.testing.assert_allclose(train.squared_error(predicted, targets), error, rtol=1e-5)
