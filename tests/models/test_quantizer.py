import dataclasses
import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from lamjax.models import quantizer
from lamjax.models.quantizer import Codebooks, QuantizerConfig

SMALL = QuantizerConfig(codebooks=2, latents=3, dim=4, codes=5, decay=0.9)
B = 8


def latents(config=SMALL, batch=B, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=(batch, config.latent_dim))).astype(np.float32)


def books(config=SMALL, seed=0, scale=1.0):
    """Codebooks that have moved: their codes are as far apart as the latents."""
    rng = np.random.default_rng(100 + seed)
    shape = (config.codebooks, config.codes, config.dim)
    embedding = (scale * rng.normal(size=shape)).astype(np.float32)
    count = rng.uniform(0.5, 3, shape[:2]).astype(np.float32)
    return Codebooks(jnp.array(embedding), jnp.array(count), jnp.array(embedding * count[..., None]))


_quantize = jax.jit(quantizer.quantize, static_argnums=2)
_update = jax.jit(quantizer.update, static_argnums=3)


# Layout


def test_a_flat_latent_is_codebook_dimension_latent():
    config = QuantizerConfig(codebooks=2, latents=3, dim=2, codes=4)
    z = jnp.arange(24.0).reshape(2, 12)
    vectors = quantizer.grouped(z, config)
    assert vectors.shape == (2, 2, 3, 2)  # [N, B, H, D]
    # Flat index n * 6 + d * 3 + h.
    np.testing.assert_array_equal(vectors[0, 0], [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(vectors[1, 0], [[6, 9], [7, 10], [8, 11]])
    np.testing.assert_array_equal(vectors[1, 1, 2], [20, 23])
    np.testing.assert_array_equal(quantizer.flat(vectors), z)


def test_latents_of_a_group_share_its_codebook_by_hand():
    config = QuantizerConfig(codebooks=2, latents=2, dim=1, codes=3)
    state = Codebooks(jnp.array([[[0.0], [1.0], [5.0]], [[-1.0], [2.0], [9.0]]]), jnp.ones((2, 3)), jnp.ones((2, 3, 1)))
    z = jnp.array([[0.4, 4.0, 0.4, 4.0], [0.6, -7.0, 0.6, 100.0]])
    z_q, codes = quantizer.quantize(state, z, config)
    np.testing.assert_array_equal(z_q, [[0, 5, -1, 2], [1, 0, 2, 9]])
    np.testing.assert_array_equal(codes, [[[0, 2], [0, 1]], [[1, 0], [1, 2]]])


def test_sizes_are_lapos_by_default():
    config = QuantizerConfig()
    assert (config.latent_dim, config.codebooks * config.latents) == (128, 8)
    assert SMALL.latent_dim == 24


# Lookup


@hypothesis.given(seed=st.integers(0, 10**6))
@hypothesis.settings(deadline=None, max_examples=20)
def test_the_nearest_code_by_brute_force(seed):
    z, state = latents(seed=seed), books(seed=seed)
    z_q, codes = _quantize(state, z, SMALL)
    assert z_q.shape == (B, 24) and z_q.dtype == jnp.float32
    assert codes.shape == (B, 2, 3) and codes.dtype == jnp.int32
    shaped, shaped_q = (np.asarray(x).reshape(B, 2, 4, 3) for x in (z, z_q))
    embedding = np.asarray(state.embedding, np.float64)
    for b in range(B):
        for n in range(2):
            for h in range(3):
                distances = [np.square(shaped[b, n, :, h] - code).sum() for code in embedding[n]]
                nearest = int(np.argmin(distances))
                assert distances[codes[b, n, h]] <= distances[nearest] + 1e-5
                np.testing.assert_array_equal(shaped_q[b, n, :, h], state.embedding[n, codes[b, n, h]])


def test_a_code_is_its_own_nearest():
    state = books()
    codes = np.random.default_rng(0).integers(0, 5, (B, 2, 3))
    vectors = np.stack([np.asarray(state.embedding)[n, codes[:, n]] for n in range(2)])
    z = quantizer.flat(jnp.array(vectors))
    z_q, found = _quantize(state, z, SMALL)
    np.testing.assert_array_equal(found, codes)
    np.testing.assert_array_equal(z_q, z)
    assert quantizer.commitment_loss(z, z_q) == 0


def test_a_latent_of_another_size_is_refused():
    with pytest.raises(AssertionError):
        quantizer.quantize(books(), jnp.zeros((2, 23)), SMALL)


# Gradients


def test_straight_through_passes_the_gradient_as_it_is():
    z, state = latents(), books()
    weight = latents(seed=9)

    def loss(z):
        z_q, _ = quantizer.quantize(state, z, SMALL)
        out = quantizer.straight_through(z, z_q)
        return jnp.sum(out * weight), (out, z_q)

    gradient, (out, z_q) = jax.jit(jax.grad(loss, has_aux=True))(z)
    np.testing.assert_array_equal(gradient, weight)
    np.testing.assert_allclose(out, z_q, atol=1e-6)


def test_codes_get_no_gradient():
    z = latents()

    def loss(embedding):
        state = books().replace(embedding=embedding)
        z_q, _ = quantizer.quantize(state, z, SMALL)
        return quantizer.commitment_loss(z, z_q) + quantizer.straight_through(z, z_q).sum()

    np.testing.assert_array_equal(jax.jit(jax.grad(loss))(books().embedding), 0)


def test_commitment_loss_by_hand():
    z, z_q = jnp.array([[1.0, 2.0], [3.0, 5.0]]), jnp.array([[1.0, 1.0], [3.0, 3.0]])
    loss, gradient = jax.value_and_grad(quantizer.commitment_loss)(z, z_q)
    assert loss == 5 / 4
    np.testing.assert_array_equal(gradient, [[0, 0.5], [0, 1]])


# Use of the codes


def test_hits_count_every_latent():
    codes = jnp.array([[[0, 1, 1], [4, 4, 4]], [[1, 0, 2], [4, 0, 4]]])
    np.testing.assert_array_equal(quantizer.hits(codes, SMALL), [[2, 3, 1, 0, 0], [1, 0, 0, 0, 5]])


def test_perplexity_is_one_for_one_code_and_m_for_all():
    counts = jnp.array([[7.0, 0, 0, 0], [3, 3, 3, 3], [4, 0, 4, 0], [2, 1, 1, 0]])
    expected = [1, 4, 2, 2**1.5]
    np.testing.assert_allclose(quantizer.perplexity(counts), expected, rtol=1e-5)
    np.testing.assert_allclose(quantizer.perplexity(jnp.zeros((2, 4))), [1, 1])
    np.testing.assert_allclose(quantizer.perplexity(counts * 1000), expected, rtol=1e-5)


# Moving averages


def ema_by_hand(state, z, codes, config):
    """The update as a loop over latents, in float64."""
    embedding, count, total = (np.array(x, np.float64) for x in (state.embedding, state.count, state.total))
    z = np.asarray(z, np.float64).reshape(-1, config.codebooks, config.dim, config.latents)
    for n in range(config.codebooks):
        hits, sums = np.zeros(config.codes), np.zeros((config.codes, config.dim))
        for b in range(len(z)):
            for h in range(config.latents):
                hits[codes[b, n, h]] += 1
                sums[codes[b, n, h]] += z[b, n, :, h]
        count[n] = config.decay * count[n] + (1 - config.decay) * hits
        mass = count[n].sum()
        count[n] = (count[n] + config.smoothing) / (mass + config.codes * config.smoothing) * mass
        total[n] = config.decay * total[n] + (1 - config.decay) * sums
        embedding[n] = total[n] / count[n][:, None]
    return Codebooks(embedding, count, total)


@pytest.mark.parametrize("start", ["corrected", "reference"])
@pytest.mark.parametrize("smoothing", [1e-5, 0.1])
def test_updates_are_those_of_a_loop(start, smoothing):
    """Over several steps, so that what is written back (the smoothed counts) is used again."""
    config = QuantizerConfig(codebooks=2, latents=3, dim=4, codes=5, decay=0.9, smoothing=smoothing, start=start)
    state = quantizer.init(jax.random.key(0), config)
    by_hand = state
    for step in range(6):
        z = latents(seed=step)
        _, codes = _quantize(state, z, config)
        state = _update(state, z, codes, config)
        by_hand = ema_by_hand(by_hand, z, np.asarray(codes), config)
        for name in ("count", "total", "embedding"):
            np.testing.assert_allclose(getattr(state, name), getattr(by_hand, name), rtol=2e-4, atol=1e-6)


def test_smoothing_lifts_dead_codes_and_keeps_the_mass():
    config = QuantizerConfig(codebooks=1, latents=1, dim=1, codes=2, decay=0.5, smoothing=0.5)
    state = Codebooks(jnp.array([[[1.0], [4.0]]]), jnp.array([[4.0, 0.0]]), jnp.array([[[4.0], [8.0]]]))
    state = quantizer.update(state, jnp.array([[3.0]] * 4), jnp.zeros((4, 1, 1), jnp.int32), config)
    # Counts 0.5 * (4, 0) + 0.5 * (4, 0) = (4, 0), mass 4; smoothed (4.5, 0.5) / 5 * 4.
    np.testing.assert_allclose(state.count, [[3.6, 0.4]], rtol=1e-6)
    # Sums 0.5 * 4 + 0.5 * 12 and 0.5 * 8.
    np.testing.assert_allclose(state.total, [[[8.0], [4.0]]], rtol=1e-6)
    np.testing.assert_allclose(state.embedding, [[[8 / 3.6], [10.0]]], rtol=1e-6)


@pytest.mark.parametrize(("start", "count"), [("corrected", 1), ("reference", 0)])
def test_start(start, count):
    config = QuantizerConfig(start=start)
    state = quantizer.init(jax.random.key(0), config)
    assert state.embedding.shape == state.total.shape == (2, 64, 16)
    bound = 5 / 64
    assert bound * 0.99 < np.abs(state.embedding).max() <= bound
    np.testing.assert_array_equal(state.count, np.full((2, 64), count))
    np.testing.assert_array_equal(state.total, state.embedding)
    assert (state.embedding[0] != state.embedding[1]).all()
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))  # else the second step is compiled anew
    leaves = jax.tree.leaves(state)
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)  # each can be donated


def test_the_corrected_start_keeps_dead_codes_where_the_reference_throws_them_away():
    state = {}
    for start in ("corrected", "reference"):
        config = QuantizerConfig(start=start)
        before = quantizer.init(jax.random.key(0), config)
        z = latents(config, batch=32, scale=0.1)
        _, codes = quantizer.quantize(before, z, config)
        used = np.asarray(quantizer.hits(codes, config)) > 0
        assert used.any() and not used.all()
        state[start] = _update(before, z, codes, config)
        ratio = np.linalg.norm(state[start].embedding, axis=-1) / np.linalg.norm(before.embedding, axis=-1)
        if start == "corrected":
            np.testing.assert_allclose(ratio[~used], 1, rtol=1e-3)
        else:
            assert ratio[~used].min() > 5e4  # about 0.999 / 1e-5


def test_two_devices_update_as_one_does_on_the_joined_batch():
    state, z = books(), latents()
    _, codes = _quantize(state, z, SMALL)
    joined = _update(state, z, codes, SMALL)
    halves = [np.asarray(x).reshape(2, B // 2, *x.shape[1:]) for x in (z, codes)]
    update = functools.partial(quantizer.update, config=SMALL, axis_name="devices")
    parts = jax.pmap(update, axis_name="devices", in_axes=(None, 0, 0))(state, *halves)
    for device in range(2):
        jax.tree.map(
            lambda a, b, device=device: np.testing.assert_allclose(a[device], b, rtol=1e-5, atol=1e-6), parts, joined
        )


def test_update_lets_no_gradient_through():
    state, z = books(), latents()
    _, codes = _quantize(state, z, SMALL)
    gradient = jax.jit(jax.grad(lambda z: quantizer.update(state, z, codes, SMALL).embedding.sum()))(z)
    np.testing.assert_array_equal(gradient, 0)


def test_revived_codes_lie_on_vectors_of_the_batch():
    config = QuantizerConfig(codebooks=1, latents=1, dim=2, codes=4, decay=0.5, revive=0.9)
    embedding = jnp.array([[[0.0, 0.0], [50.0, 50.0], [60.0, 60.0], [70.0, 70.0]]])
    books = quantizer.Codebooks(embedding, jnp.ones((1, 4)), embedding)
    z = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    _, codes = quantizer.quantize(books, z, config)
    assert not np.any(codes)  # all four hit code 0
    new = quantizer.update(books, z, codes, config)
    # Counts before the revival: 0.5 + 0.5 * 4 = 2.5, and 0.5 for the others, which fall below 0.9; the average is 1.
    np.testing.assert_allclose(new.count, [[2.5, 1.0, 1.0, 1.0]], rtol=1e-4)
    np.testing.assert_allclose(new.embedding[0, 0], [0.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(new.embedding[0, 1:], z[1:], rtol=1e-4, atol=1e-6)
    kept = quantizer.update(books, z, codes, dataclasses.replace(config, revive=0.0))
    np.testing.assert_allclose(kept.embedding[0, 1:], embedding[0, 1:], rtol=1e-3)
