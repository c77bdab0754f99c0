import functools
import itertools
import shutil

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from lamjax import data
from lamjax.data import stream as stream_module


@pytest.fixture
def store(stores):
    """12 episodes of 1 to 12 frames: 55 windows."""
    return stores.make([*range(1, 13)])


def make_stream(store, **kwargs):
    return data.ObservationStream(store, **({"batch_size": 5, "split": "all"} | kwargs))


def starts_of(stream, stores, steps):
    """Store indices [steps * B] of the windows of these steps; checks that they are windows."""
    windows = stores.numbers(np.concatenate([stream.windows(step) for step in steps]))
    np.testing.assert_array_equal(windows, windows[:, :1] + np.arange(3))
    return windows[:, 0]


@functools.partial(jax.jit, static_argnums=2)
def sample_both(buffer, step, batch_size):
    key = jax.random.key(0)
    starts = data.sample_starts(buffer, key, step, batch_size)
    return starts, data.sample(buffer, key, step, batch_size)


def test_gather_by_hand():
    frames = jnp.arange(12, dtype=jnp.uint8).reshape(6, 2)
    windows = data.gather(frames, jnp.array([3, 0]), length=2)
    assert windows.dtype == jnp.uint8
    np.testing.assert_array_equal(windows, [[[6, 7], [8, 9]], [[0, 1], [2, 3]]])


def test_an_epoch_visits_every_window_once(store, stores):
    stream = make_stream(store)
    assert (stream.num_starts, stream.steps_per_epoch) == (55, 11)
    epochs = [starts_of(stream, stores, range(11 * e, 11 * e + 11)) for e in range(3)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), store.starts("all"))
    assert not np.array_equal(epochs[0], epochs[1])
    other = starts_of(make_stream(store, seed=1), stores, range(11))
    assert not np.array_equal(epochs[0], other)


@hypothesis.given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12), batch_size=st.sampled_from([1, 4]))
@hypothesis.settings(deadline=None, max_examples=25)
def test_samples_stay_within_episodes_and_do_not_repeat(lengths, batch_size):
    is_first = np.concatenate([np.arange(n) == 0 for n in lengths])
    starts = data.valid_starts(is_first)
    hypothesis.assume(len(starts) >= batch_size)
    episode = np.cumsum(is_first)
    # Padded, so that all examples share one compiled function.
    buffer = data.Buffer(
        frames=jnp.asarray(np.pad(episode, (0, 128 - len(episode)))),
        starts=jnp.asarray(np.pad(starts, (0, 128 - len(starts)))),
        num_starts=jnp.int32(len(starts)),
    )
    steps = range(len(starts) // batch_size)
    seen, windows = zip(*(sample_both(buffer, step, batch_size) for step in steps), strict=True)
    seen, windows = np.concatenate(seen), np.concatenate(windows)
    assert windows.shape == (len(steps) * batch_size, 3)
    assert (windows == windows[:, :1]).all()
    assert len(set(seen.tolist())) == len(seen)
    assert set(seen.tolist()) <= set(starts.tolist())


def test_restoring_at_every_position_gives_the_remaining_batches(store):
    steps = range(25)  # more than two epochs of 11
    stream = make_stream(store, seed=3)
    uninterrupted = [np.asarray(stream.windows(step)) for step in steps]
    restored = make_stream(data.open_store(store.path), seed=3)
    for position in steps:
        for step in steps[position:]:
            np.testing.assert_array_equal(restored.windows(step), uninterrupted[step])


def test_windows_equal_sample_inside_a_step_that_is_traced_once(store):
    stream = make_stream(store)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def train_step(step, buffer, key):
        return step + 1, data.sample(buffer, key, step, stream.batch_size)

    chex.clear_trace_counter()
    step = jnp.int32(0)
    for i in range(13):
        step, windows = train_step(step, stream.buffer(i), stream.key)
        np.testing.assert_array_equal(windows, stream.windows(i))


def test_batches_do_not_change_between_releases(store, stores):
    # Another permutation is another experiment: changing these numbers breaks resumed runs.
    assert starts_of(make_stream(store), stores, [0, 1]).tolist() == [72, 40, 24, 61, 12, 74, 68, 38, 6, 17]


def test_stores_of_about_one_size_share_a_compiled_step(stores):
    buffers = [make_stream(stores.make([n, 9], name=str(n))).buffer(0) for n in (8, 30)]
    chex.assert_trees_all_equal_shapes_and_dtypes(*buffers)
    assert [int(buffer.num_starts) for buffer in buffers] == [6 + 7, 28 + 7]


def test_splits_and_masks(stores):
    store = stores.make([4] * 30)
    for split in ("train", "test", "all"):
        stream = make_stream(store, split=split, batch_size=1)
        seen = starts_of(stream, stores, range(stream.steps_per_epoch))
        np.testing.assert_array_equal(np.sort(seen), store.starts(split))
    unmasked = make_stream(store, mask_boundaries=False, batch_size=1)
    seen = starts_of(unmasked, stores, range(unmasked.steps_per_epoch))
    np.testing.assert_array_equal(np.sort(seen), np.arange(120 - 2))


def test_filling_the_buffer_in_pieces(store, monkeypatch):
    whole = make_stream(store).buffer(0).frames
    monkeypatch.setattr(stream_module, "FRAMES_PER_COPY", 7)
    pieces = make_stream(store).buffer(0).frames
    np.testing.assert_array_equal(pieces[: store.num_frames], store.observations())
    np.testing.assert_array_equal(whole[: store.num_frames], store.observations())
    assert len(whole) == 4096 and len(pieces) == 84  # whole pieces


def test_float_observations(tmp_path):
    observations = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
    with data.StoreWriter(
        tmp_path / "store", env="linear", obs_shape=(5,), obs_dtype="float32", action_dim=1
    ) as writer:
        writer.append_episode(observations, np.zeros((9, 1)), np.zeros(9), 1, "cut")
    stream = make_stream(data.open_store(tmp_path / "store"), batch_size=7)
    windows = np.asarray(stream.windows(0))
    starts = [int(np.flatnonzero((observations == window[0]).all(1))[0]) for window in windows]
    assert sorted(starts) == list(range(7))
    np.testing.assert_array_equal(windows, [observations[i : i + 3] for i in starts])


def test_a_stream_knows_no_actions(store):
    store = data.open_store(store.path)
    for name in ("actions", "rewards"):
        shutil.rmtree(store.path / name)
    stream = make_stream(store)
    stream.windows(0)
    assert not [name for name in dir(stream) if "action" in name or "reward" in name]
    fields = {"frames", "starts", "num_starts", "phase", "first_step", "places", "play"}
    assert set(stream.buffer(0).__dataclass_fields__) == fields


def test_what_does_not_fit_is_refused(store):
    with pytest.raises(ValueError, match="mode 'rign' is unknown"):
        make_stream(store, mode="rign")
    with pytest.raises(data.StoreError, match="has 55 windows, too few for a batch of 56"):
        make_stream(store, batch_size=56)
    with pytest.raises(ValueError, match="not a multiple of 2 devices"):
        data.sample_starts(make_stream(store).buffer(0), jax.random.key(0), 0, 5, axis_size=2)


# A ring


@pytest.fixture
def long_store(stores):
    """40 episodes of 5 to 14 frames: 380 frames, 300 windows."""
    return stores.make([5 + i % 10 for i in range(40)])


RING = {"mode": "ring", "ring_frames": 8 * 15, "batch_size": 2}


def test_a_ring_holds_eight_blocks_and_replaces_one_a_phase(long_store, stores):
    stream = make_stream(long_store, **RING)
    frames = [
        set(stores.numbers(np.asarray(stream.buffer(phase * stream.steps_per_phase).frames)).tolist())
        for phase in range(30)
    ]
    assert stream.buffer(0).frames.shape[0] == RING["ring_frames"]
    for before, after in itertools.pairwise(frames):
        assert len(before & after) > 0.5 * len(before)
        assert len(after - before) <= 15
    assert set().union(*frames) == set(range(380)) | {0}


def test_a_ring_draws_every_window_about_as_often(long_store, stores):
    stream = make_stream(long_store, **RING)
    valid = set(long_store.starts("all").tolist())
    phase = starts_of(stream, stores, range(stream.steps_per_phase))
    assert len(set(phase.tolist())) == len(phase) == 2 * stream.steps_per_phase
    passes = 60
    drawn = starts_of(stream, stores, range(passes * 300 // 2))
    assert set(drawn.tolist()) == valid
    counts = np.bincount(drawn, minlength=380)[sorted(valid)]
    assert counts.mean() == passes
    assert counts.min() > passes / 2 and counts.max() < 2 * passes


def test_a_ring_restored_at_any_step_gives_the_remaining_batches(long_store):
    steps = range(0, 90)
    stream = make_stream(long_store, **RING, seed=3)
    uninterrupted = [np.asarray(stream.windows(step)) for step in steps]
    for position in (1, 17, 40, 41, 89):
        restored = make_stream(data.open_store(long_store.path), **RING, seed=3)
        for step in steps[position:]:
            np.testing.assert_array_equal(restored.windows(step), uninterrupted[step])
    # Going back is allowed too.
    np.testing.assert_array_equal(stream.windows(0), uninterrupted[0])


def test_episodes_longer_than_a_block_lose_no_window(stores):
    store = stores.make([100, 3, 64])
    stream = make_stream(store, mode="ring", ring_frames=8 * 10, batch_size=1)
    drawn = starts_of(stream, stores, range(40 * 163))
    assert set(drawn.tolist()) == set(store.starts("all").tolist())


def test_phases_of_a_ring_fit_dispatches(long_store):
    stream = make_stream(long_store, **RING, align=4)
    assert stream.steps_per_phase % 4 == 0
    with pytest.raises(data.StoreError, match=r"too few windows for 50 batch\(es\) of 2; enlarge ring_frames"):
        make_stream(long_store, **RING, align=50)
    with pytest.raises(ValueError, match="a block of 2 frames holds no window of 3"):
        make_stream(long_store, **RING | {"ring_frames": 16})


def test_a_split_that_fits_the_ring_is_kept_whole(store):
    stream = make_stream(store, mode="ring", ring_frames=78)
    assert stream.steps_per_phase is None
    np.testing.assert_array_equal(stream.windows(5), make_stream(store).windows(5))


def test_a_damaged_store_stops_the_ring(long_store, monkeypatch):
    stream = make_stream(long_store, **RING)
    stream.buffer(0)

    def fail(frames):
        raise data.StoreError("chunk 3 is damaged")

    monkeypatch.setattr(long_store, "observations_at", fail)
    with pytest.raises(data.StoreError, match="chunk 3 is damaged"):
        [stream.buffer(step) for step in range(3 * stream.steps_per_phase)]


# Several devices


def test_shards_by_hand():
    np.testing.assert_array_equal(data.shard_episodes([4, 4, 4, 4], 2), [0, 0, 1, 1])
    np.testing.assert_array_equal(data.shard_episodes([10, 1, 1], 3), [1, 2, 2])
    np.testing.assert_array_equal(data.shard_episodes([5, 6], 1), [0, 0])
    assert data.shard_episodes([], 2).shape == (0,)


@hypothesis.given(lengths=st.lists(st.integers(1, 1000), min_size=1, max_size=50), num_shards=st.integers(1, 8))
def test_shards_are_balanced_runs(lengths, num_shards):
    shard_of = data.shard_episodes(lengths, num_shards)
    assert (np.diff(shard_of) >= 0).all()
    assert shard_of.min() >= 0 and shard_of.max() < num_shards
    frames = np.bincount(shard_of, weights=lengths, minlength=num_shards)
    assert np.abs(frames - sum(lengths) / num_shards).max() <= max(lengths)


@pytest.mark.skipif(jax.device_count() < 2, reason="needs 2 devices")
def test_two_devices_hold_and_draw_their_own_episodes(store, stores):
    devices = jax.devices()[:2]
    stream = make_stream(store, batch_size=4, devices=devices)
    assert stream.buffer(0).frames.shape[0] == 2
    shards = [set(), set()]
    for step in range(2 * 14):
        windows = stores.numbers(stream.windows(step))
        assert windows.shape == (2, 2, 3)
        np.testing.assert_array_equal(windows, windows[..., :1] + np.arange(3))
        for shard, starts in zip(shards, windows[..., 0], strict=True):
            shard |= set(starts.tolist())
    assert not shards[0] & shards[1]
    assert shards[0] | shards[1] <= set(store.starts("all").tolist())
    assert max(shards[0]) < min(shards[1])
    with pytest.raises(ValueError, match="not a multiple of 2 devices"):
        make_stream(store, batch_size=5, devices=devices)
    with pytest.raises(data.StoreError, match="too few"):
        make_stream(stores.make([9], name="single"), batch_size=2, devices=devices)


def test_a_share_of_the_windows_comes_from_random_play(store, stores):
    play = stores.make([30, 20], name="play")
    beside = data.StreamBesidePlay(make_stream(store, batch_size=8), make_stream(play, batch_size=1))
    buffer, alone = beside.buffer(0), make_stream(store, batch_size=8).buffer(0)
    shifted = buffer.replace(play=buffer.play.replace(frames=buffer.play.frames + 100))  # to tell them apart
    for step in range(3):
        windows = stores.numbers(data.sample_with_play(shifted, beside.key, step, 8, 0.25))
        np.testing.assert_array_equal(windows, windows[:, :1] + np.arange(3))
        assert (windows[:6] < 100).all() and (windows[6:] >= 100).all()
        np.testing.assert_array_equal(windows[:6], stores.numbers(data.sample(alone, beside.key, step, 6)))
        without = data.sample(alone, beside.key, step, 8)
        for share, source in ((0.0, buffer), (0.25, alone)):
            np.testing.assert_array_equal(data.sample_with_play(source, beside.key, step, 8, share), without)
    assert (stores.numbers(data.sample_with_play(shifted, beside.key, 0, 8, 1.0)) >= 100).all()
    # Over an epoch of theirs the windows of random play come once each: 28 + 18 of them, two a step.
    drawn = [stores.numbers(data.sample_with_play(shifted, beside.key, step, 8, 0.25))[6:, 0] for step in range(23)]
    assert len(set(np.concatenate(drawn).tolist())) == 46


def test_every_device_draws_as_many_windows_of_random_play(store, stores):
    buffer = make_stream(store, batch_size=8).buffer(0)
    buffer = buffer.replace(play=make_stream(stores.make([30], name="play"), batch_size=1).buffer(0))
    for batch, share, devices, expected in ((12, 0.25, 2, 2), (8, 0.25, 2, 1), (8, 0.1, 2, 0)):
        marked = buffer.replace(play=buffer.play.replace(frames=buffer.play.frames + 100))
        windows = data.sample_with_play(marked, jax.random.key(0), 0, batch, share, axis_size=devices)
        assert len(windows) == batch // devices and (stores.numbers(windows)[:, 0] >= 100).sum() == expected


@pytest.mark.skipif(jax.device_count() < 2, reason="needs 2 devices")
def test_device_buffers_are_not_copied_when_joined(store):
    devices = jax.devices()[:2]
    stream = make_stream(store, batch_size=4, devices=devices)
    for d, shard in enumerate(stream.buffer(0).frames.addressable_shards):
        assert shard.device == devices[d] and shard.data.shape[0] == 1
    # One device with the same share draws what the device of a group draws.
    alone = jax.tree.map(lambda x: jnp.asarray(x[1]), jax.device_get(stream.buffer(0)))
    sample = jax.jit(data.sample, static_argnames=("batch_size", "axis_size"))
    windows = sample(alone, stream.key, 3, batch_size=4, axis_index=1, axis_size=2)
    np.testing.assert_array_equal(windows, stream.windows(3)[1])


@pytest.mark.skipif(jax.device_count() < 2, reason="needs 2 devices")
def test_each_device_has_its_own_ring(long_store, stores):
    devices = jax.devices()[:2]
    stream = make_stream(long_store, **RING | {"ring_frames": 8 * 14}, devices=devices)
    shards = [set(), set()]
    for step in range(8 * 300):
        windows = stores.numbers(stream.windows(step))
        np.testing.assert_array_equal(windows, windows[..., :1] + np.arange(3))
        for shard, starts in zip(shards, windows[..., 0], strict=True):
            shard |= set(starts.tolist())
    assert not shards[0] & shards[1]
    assert shards[0] | shards[1] == set(long_store.starts("all").tolist())


# Evaluation


# Labels


def test_labelled_windows_come_with_their_actions(stores):
    store = stores.make([6] * 30)
    subset = data.LabelledSubset(store, 40, seed=1)
    labels = data.upload_labels(subset)
    assert subset.labels_used == 40
    sample = jax.jit(data.sample_labelled, static_argnums=3)
    frames, actions = sample(labels, jax.random.key(0), 3, 4000)
    numbers = stores.numbers(frames)
    np.testing.assert_array_equal(numbers, numbers[:, :1] + np.arange(3))
    assert set(numbers[:, 0].tolist()) == set(subset.starts.tolist())  # all of them, and no other
    np.testing.assert_array_equal(actions, stores.actions(numbers[:, 1]))
    again, _ = sample(labels, jax.random.key(0), 3, 4000)
    np.testing.assert_array_equal(again, frames)
    later, _ = sample(labels, jax.random.key(0), 4, 4000)
    assert not np.array_equal(later, frames)


def test_labels_are_dealt_to_devices(stores):
    subset = data.LabelledSubset(stores.make([20, 20], level_seeds=[1, 1]), 9, seed=0)
    labels = data.upload_labels(subset, jax.local_devices()[:2])
    assert labels.actions.shape == (2, 5) and labels.frames.shape[:2] == (2, 15)
    sample = jax.pmap(
        lambda x: data.sample_labelled(x, jax.random.key(0), 0, 128, axis_index=jax.lax.axis_index("d"), axis_size=2),
        "d",
    )
    frames, actions = jax.device_get(sample(labels))
    numbers = np.stack([stores.numbers(part) for part in frames])
    np.testing.assert_array_equal(actions, stores.actions(numbers[..., 1]))
    ours, theirs = (set(part[:, 0].tolist()) for part in numbers)
    assert ours | theirs == set(subset.starts.tolist()) and len(ours) == len(theirs) == 5
    assert ours & theirs == {subset.starts[0]}  # nine do not deal evenly


def test_continuous_labels_are_those_of_the_store(stores, tmp_path):
    taken = np.arange(18, dtype=np.float32).reshape(9, 2)
    with data.StoreWriter(tmp_path / "linear", env="linear", obs_shape=(4,), action_dim=2) as writer:
        writer.append_episode(stores.frames(range(9)), taken, np.zeros(9), 1, "cut")
    subset = data.LabelledSubset(data.open_store(tmp_path / "linear"), 3, split="all")
    labels = data.upload_labels(subset)
    np.testing.assert_array_equal(labels.actions, taken[subset.starts + 1])
    frames, actions = data.sample_labelled(labels, jax.random.key(0), 0, 16)
    np.testing.assert_array_equal(actions, taken[stores.numbers(frames)[:, 1]])


@pytest.mark.parametrize("count", [None, 2])
def test_streams_share_frames_and_keep_their_own_order(store, stores, monkeypatch, count):
    devices = None if count is None else tuple(jax.local_devices()[:count])
    settings = {"batch_size": 2, "seed": 3, "devices": devices}
    first, own = make_stream(store, batch_size=4, devices=devices), make_stream(store, **settings)
    with monkeypatch.context() as patch:
        patch.setattr(stream_module, "_upload", None)  # nothing is uploaded again
        shared = make_stream(store, **settings, like=first)
    assert shared.buffer(0) is first.buffer(0)
    assert (shared.num_starts, shared.steps_per_epoch) == (own.num_starts, own.steps_per_epoch)
    for step in range(5):
        np.testing.assert_array_equal(shared.windows(step), own.windows(step))


def test_streams_of_other_windows_or_on_a_ring_share_no_frames(store):
    first = make_stream(store)
    with pytest.raises(ValueError, match=r"^a stream of .* cannot share the frames of one of"):
        make_stream(store, length=2, like=first)
    ring = make_stream(store, batch_size=1, mode="ring", ring_frames=40, like=first)
    assert ring.steps_per_phase
    assert make_stream(store, like=make_stream(store, batch_size=1, mode="ring", ring_frames=40)).steps_per_epoch == 11


def test_evaluation_windows_are_fixed_and_full(stores):
    store = stores.make([6] * 60)
    windows = data.EvaluationWindows(store, num_windows=10, batch_size=4, split="test")
    assert windows.starts.shape == (8,)
    assert set(windows.starts) <= set(store.starts("test"))
    assert isinstance(windows.batches, jax.Array) and windows.batches is windows.batches  # uploaded once
    np.testing.assert_array_equal(windows.batches, windows.windows.reshape(2, 4, *windows.windows.shape[1:]))
    np.testing.assert_array_equal(stores.numbers(windows.windows), windows.starts[:, None] + np.arange(3))
    again = data.EvaluationWindows(store, num_windows=10, batch_size=4, split="test")
    np.testing.assert_array_equal(again.starts, windows.starts)


def test_evaluation_windows_of_small_splits(stores):
    store = stores.make([5, 5], level_seeds=[1, 2])
    assert {data.split_of_level(1), data.split_of_level(2)} == {"train"}
    windows = data.EvaluationWindows(store, num_windows=99, batch_size=32, split="train")
    assert windows.batches.shape == (1, 6, 3, 4)
    with pytest.raises(data.StoreError, match=r"test split of .* has no windows"):
        data.EvaluationWindows(store, num_windows=99, batch_size=32)
