"""Observation streams: frames stay in device memory, and windows are drawn inside the jitted step.

`sample` is pure: it maps (buffer, key, step) to a batch of windows. So a stream has no position of its own. Its seed
and the step determine the next batch, and a run restored at any step sees the batches that the uninterrupted run would
have seen.

    stream = ObservationStream(open_store(path), batch_size=128, seed=0)

    @jax.jit
    def update(state, buffer):
        windows = sample(buffer, stream.key, state.step, stream.batch_size)
        return dynamics.train_step(state, windows)

    for step in range(num_steps):
        state, metrics = update(state, stream.buffer(step))

A buffer has no actions. The few that training may see come from a `LabelledSubset`, with their own windows.

Dimension keys: N: frames, S: window starts, B: batch, L: frames in a window, D: devices, K: labelled windows.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lamjax import parallel
from lamjax.data import ring, windows
from lamjax.data.format import Episodes, Split, StoreError
from lamjax.data.labels import LabelledSubset
from lamjax.data.reader import Store, split_mask

_LABELS = 2**31 - 2  # derives the labels' key from the stream's; larger than any device number
_PLAY = 2**31 - 3  # the same for random play
FRAMES_PER_COPY = 4096  # bounds host memory while a buffer fills: 50 MB of 64x64 pixels


@flax.struct.dataclass
class Buffer:
    """The frames that one device holds. Over D devices, each field has a leading axis D.

    Attributes:
        frames: [N, *obs_shape] of the store's dtype, uint8 for pixels; whole episodes, end to end, padded
            with zeros to a round N.
        starts: int32 [S], the frames at which a window may start.
        num_starts: int32 scalar, how many of `starts` count, so that buffers of equal shape can hold different numbers
            of windows; None means all.
        phase: int32 scalar, how often a ring's frames have been replaced. Each phase draws its windows in an order from
            `fold_in(key, phase)`; None means that nothing is replaced.
        first_step: int32 scalar, the step at which the phase began; None like `phase`.
        places: int32 [N], each frame's index in the store, 0 for padding; None without a store.
        play: a second buffer with random play, for stage 1 (`sample_with_play`); None if there is none.
    """

    frames: jax.Array
    starts: jax.Array
    num_starts: jax.Array | None = None
    phase: jax.Array | None = None
    first_step: jax.Array | None = None
    places: jax.Array | None = None
    play: "Buffer | None" = None


def sample(
    buffer: Buffer,
    key: jax.Array,
    step: jax.Array | int,
    batch_size: int,
    *,
    length: int = 3,
    axis_index: jax.Array | int = 0,
    axis_size: int = 1,
) -> jax.Array:
    """Draws the windows of a step; runs inside jit.

    Each epoch visits every start at most once, in the order of a permutation drawn from `fold_in(key, epoch)`. A device
    holds its own episodes and draws its own windows from them.

    Args:
        buffer: this device's frames and starts.
        key: the stream's JAX key, the same at every step and on every device.
        step: int32 scalar, >= 0.
        batch_size: windows over all devices; a multiple of `axis_size`.
        length: L, frames in a window.
        axis_index: which device this is, such as `jax.lax.axis_index("devices")`.
        axis_size: D, number of devices.

    Returns:
        [batch_size / axis_size, L, *obs_shape] of the buffer's dtype.
    """
    starts = sample_starts(buffer, key, step, batch_size, axis_index=axis_index, axis_size=axis_size)
    return gather(buffer.frames, starts, length)


def sample_with_play(
    buffer: Buffer, key: jax.Array, step: jax.Array | int, batch_size: int, play_share: float, **options: Any
) -> jax.Array:
    """Draws the windows of a step, a share of them from random play, ``buffer.play``; runs inside jit.

    The share is rounded so that every device gets the same number of these windows, which come last in the batch. The
    other arguments and the result are those of `sample`.
    """
    devices = options.get("axis_size", 1)
    play = buffer.play
    count = 0 if play is None else round(play_share * batch_size / devices) * devices
    parts = []
    if count < batch_size:
        parts.append(sample(buffer, key, step, batch_size - count, **options))
    if play is not None and count:
        parts.append(sample(play, jax.random.fold_in(key, _PLAY), step, count, **options))
    return jnp.concatenate(parts) if len(parts) > 1 else parts[0]


def sample_starts(
    buffer: Buffer,
    key: jax.Array,
    step: jax.Array | int,
    batch_size: int,
    *,
    axis_index: jax.Array | int = 0,
    axis_size: int = 1,
) -> jax.Array:
    """Where the windows of `sample` start in the buffer: int32 [batch_size / axis_size]."""
    if batch_size % axis_size:
        raise ValueError(f"batch_size {batch_size} is not a multiple of {axis_size} devices")
    num_starts = buffer.starts.shape[0] if buffer.num_starts is None else buffer.num_starts
    share = batch_size // axis_size
    if buffer.phase is None or buffer.first_step is None:
        epoch, positions = windows.epoch_positions(step, share, num_starts)
    else:
        first = (jnp.asarray(step, jnp.int32) - buffer.first_step) * share
        epoch, positions = buffer.phase, first + jnp.arange(share, dtype=jnp.int32)
    epoch_key = jax.random.fold_in(jax.random.fold_in(key, axis_index), epoch)
    return buffer.starts[windows.permute(positions, num_starts, epoch_key)]


@flax.struct.dataclass
class Labels:
    """Labelled windows in device memory. Over D devices, each field has a leading axis D.

    Attributes:
        frames: [K * L, *obs_shape], the windows end to end.
        actions: int32 [K] or float32 [K, A], the action at the second-to-last frame of each window.
    """

    frames: jax.Array
    actions: jax.Array


Part = TypeVar("Part", Buffer, Labels)


def upload_labels(subset: LabelledSubset, devices: Sequence[jax.Device] | None = None) -> Labels:
    """Puts a subset's windows and labels on the device, or distributes them over several in equal parts.

    If they cannot be distributed evenly, the first ones are used twice.
    """
    lead = () if devices is None else (1,)
    count = len(devices or [None])
    share = -(-len(subset.starts) // count)
    rows = np.resize(np.arange(len(subset.starts)), (count, share))
    parts = []
    for shard, device in _shards(devices):
        mine = rows[shard]
        frames = (subset.starts[mine][:, None] + np.arange(subset.length)[None, :]).reshape(-1)
        values = subset.actions[mine]
        actions = jax.device_put(values.reshape(*lead, *values.shape), device)
        parts.append(Labels(_upload(subset.store, frames, (*lead, len(frames)), device), actions))
    return parts[0] if devices is None else _joined(parts, devices)


def sample_labelled(
    labels: Labels,
    key: jax.Array,
    step: jax.Array | int,
    batch_size: int,
    *,
    axis_index: jax.Array | int = 0,
    axis_size: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """Draws the labelled windows of a step, with replacement; runs inside jit.

    Args:
        labels: the labels of this device.
        key: the stream's JAX key, the same at every step and on every device.
        step: int32 scalar, >= 0.
        batch_size: windows over all devices; a multiple of `axis_size`.
        axis_index: which device this is.
        axis_size: D, number of devices.

    Returns:
        Windows [batch_size / axis_size, L, *obs_shape] and their actions, int32 [batch_size / axis_size],
        or float32 [batch_size / axis_size, A].
    """
    if batch_size % axis_size:
        raise ValueError(f"batch_size {batch_size} is not a multiple of {axis_size} devices")
    for number in (_LABELS, axis_index, step):
        key = jax.random.fold_in(key, number)
    count = labels.actions.shape[0]
    length = labels.frames.shape[0] // count
    rows = jax.random.randint(key, (batch_size // axis_size,), 0, count)
    return gather(labels.frames, rows * length, length), labels.actions[rows]


def gather(frames: jax.Array, starts: jax.Array, length: int = 3) -> jax.Array:
    """The windows [B, length, *obs_shape] that start at `starts`, int32 [B], in frames [N, ...]."""
    indices = starts[:, None] + jnp.arange(length, dtype=jnp.int32)[None, :]
    return frames.at[indices].get(mode="promise_in_bounds")


class ObservationStream:
    """Batches of observation windows from a store, as a pure function of (seed, step).

    Args:
        store: where the frames come from. Only observations and episode starts are read.
        split: "train", "test" or "all".
        batch_size: windows in a batch, over all devices.
        seed: draws the order of the windows.
        mode: "resident" keeps every frame of the split in device memory. "ring" keeps `ring_frames` of them and
            replaces an eighth at a time while training continues; a split that fits is kept whole (see
            `lamjax.data.ring`).
        ring_frames: frames that each device keeps, in addition to an eighth more that are being loaded.
        align: makes a phase of the ring a multiple of this many steps, the number of steps per dispatch.
        length: L, frames in a window.
        mask_boundaries: False lets windows cross episode ends, as the LAPO reference does; in a ring, only those within
            a block.
        devices: None for one buffer on the default device. Otherwise each device holds its own episodes, and every
            field of the buffer has a leading axis D, laid out for `pmap`. If they belong to several hosts, this host
            fills only its own devices, and D counts those.
        like: a stream of the same windows, whose resident frames this one shares instead of uploading them again; a
            ring shares nothing.

    Attributes:
        key: JAX key made from the seed.
        num_starts: windows in an epoch over all devices, before the remainder is dropped.
        steps_per_epoch: steps in an epoch of the device with the fewest windows.
        steps_per_phase: steps between two replacements in a ring; None if nothing is replaced.

    Raises:
        StoreError: a device would hold fewer windows than its share of a batch.
        ValueError: the mode is unknown, the batch cannot be divided among the devices, or `like` has other windows.
    """

    _buffer: Buffer  # without a ring

    def __init__(
        self,
        store: Store,
        *,
        batch_size: int,
        split: Split = "train",
        seed: int = 0,
        mode: Literal["resident", "ring"] = "resident",
        ring_frames: int = 0,
        align: int = 1,
        length: int = 3,
        mask_boundaries: bool = True,
        devices: Sequence[jax.Device] | None = None,
        like: "ObservationStream | None" = None,
    ):
        if mode not in ("resident", "ring"):
            raise ValueError(f"mode {mode!r} is unknown; use 'resident' or 'ring'")
        axis_size = 1 if devices is None else len(devices)
        if batch_size % axis_size:
            raise ValueError(f"batch_size {batch_size} is not a multiple of {axis_size} devices")
        self.batch_size = batch_size
        self.seed = seed
        self.length = length
        self.key = jax.random.key(seed)
        self._windows_of = (store.path, split, length, mask_boundaries, devices)
        if like is not None and like._windows_of != self._windows_of:
            raise ValueError(f"a stream of {self._windows_of} cannot share the frames of one of {like._windows_of}")
        chosen = np.flatnonzero(split_mask(store.episodes, split))
        shard_of = shard_episodes(store.episodes.length[chosen], axis_size)
        owned = [chosen[shard_of == d] for d in range(axis_size)]
        shards = [_frames_of(store.episodes, episodes) for episodes in owned]
        starts = [_starts_in(store, frames, length, mask_boundaries) for frames in shards]
        share = batch_size // axis_size
        self.num_starts = sum(len(s) for s in starts)
        self.steps_per_epoch = min(len(s) for s in starts) // share
        if not self.steps_per_epoch:
            raise StoreError(
                f"the {split} split of {store.path} has {self.num_starts} windows, too few for a "
                f"batch of {batch_size} on {axis_size} device(s); record more or lower batch_size"
            )
        self._sample = _jitted_sample if devices is None else _pmapped_sample(devices)
        self.steps_per_phase = None
        if mode == "ring" and max(len(frames) for frames in shards) > ring_frames:
            capacity = ring_frames // ring.SLOTS
            blocks = [
                [ring.Block(piece, _starts_in(store, piece, length, mask_boundaries)) for piece in pieces]
                for frames, episodes in zip(shards, owned, strict=True)
                for pieces in [ring.cut(frames, store.episodes.length[episodes], capacity, length)]
            ]
            self.steps_per_phase = min(ring.steps_per_phase(shard, share, align) for shard in blocks)
            if not self.steps_per_phase:
                raise StoreError(
                    f"an eighth of a ring of {ring_frames} frames has too few windows for {align} batch(es) of "
                    f"{share}; enlarge ring_frames"
                )
            self._ring = _Ring(store, blocks, capacity, seed, devices)
            return
        if like is not None and like.steps_per_phase is None:
            self._buffer = like._buffer
            return
        # A round number, so that stores of similar size, from other seeds or games, share one compiled step.
        size = -(-max(len(frames) for frames in shards) // FRAMES_PER_COPY) * FRAMES_PER_COPY
        # Over devices each part is created with its leading axis: adding one later would copy it.
        lead = () if devices is None else (1,)
        buffers = [
            Buffer(
                frames=_upload(store, shards[shard], (*lead, size), device),
                starts=jax.device_put(_filled(s, size).reshape(*lead, size), device),
                num_starts=jax.device_put(np.full(lead, len(s), np.int32), device),
                places=jax.device_put(_filled(shards[shard], size).reshape(*lead, size), device),
            )
            for shard, device in _shards(devices)
            for s in [starts[shard]]
        ]
        self._buffer = buffers[0] if devices is None else _joined(buffers, devices)

    def buffer(self, step: int) -> Buffer:
        """The buffer to sample from at a step. A ring's buffer lasts one phase: the next call may donate its frames."""
        if self.steps_per_phase is None:
            return self._buffer
        return self._ring.buffer(step, self.steps_per_phase)

    def windows(self, step: int) -> jax.Array:
        """A step's batch: [B, L, *obs_shape], or [D, B / D, L, *obs_shape] over devices."""
        return self._sample(self.buffer(step), self.key, np.int32(step), self.batch_size, self.length)


@dataclasses.dataclass(frozen=True)
class StreamBesidePlay:
    """A stream whose buffers also contain resident frames of random play.

    Attributes:
        stream: the demonstrations.
        play: random play, over the same devices.
    """

    stream: ObservationStream
    play: ObservationStream

    @property
    def key(self) -> jax.Array:
        """The demonstrations' key."""
        return self.stream.key

    def buffer(self, step: int) -> Buffer:
        """The buffer for a step, to be used with `sample_with_play`."""
        return dataclasses.replace(self.stream.buffer(step), play=self.play.buffer(step))


class _Ring:
    """The device's side of `lamjax.data.ring`: blocks in device memory, one replaced at a time."""

    def __init__(
        self,
        store: Store,
        blocks: list[list[ring.Block]],
        capacity: int,
        seed: int,
        devices: Sequence[jax.Device] | None,
    ):
        self._store, self._blocks, self._capacity, self._seed, self._devices = store, blocks, capacity, seed, devices
        self._shards = _shards(devices)
        self._lead = () if devices is None else (1,)
        shape = (*self._lead, ring.SLOTS * capacity, *store.obs_shape)
        self._frames = [jnp.zeros(shape, store.obs_dtype, device=device) for _, device in self._shards]
        self._resident = [[ring.Block(*np.zeros((2, 0), np.int64))] * ring.SLOTS for _ in self._shards]
        # A ring can span the end of one pass and the start of the next, so a block can be in it twice.
        self._most_starts = ring.SLOTS * max(len(block.starts) for shard in blocks for block in shard)
        self._prefetcher = ring.Prefetcher(self._load)
        self._phase: int | None = None

    def buffer(self, step: int, steps_per_phase: int) -> Buffer:
        """The resident blocks in the phase of `step`."""
        phase = step // steps_per_phase
        if phase != self._phase:
            next_one = self._phase is not None and phase == self._phase + 1
            for index in range(phase + ring.SLOTS - 1 if next_one else phase, phase + ring.SLOTS):
                self._put(index % ring.SLOTS, self._prefetcher.take(index))
            self._prefetcher.ask(phase + ring.SLOTS)
            self._phase = phase
            self._buffer = self._gather(phase, phase * steps_per_phase)
        return self._buffer

    def _load(self, index: int) -> list[tuple[ring.Block, jax.Array]]:
        """Reads entry `index` of each device's sequence and sends it there; runs in the prefetcher's thread."""
        loaded = []
        for shard, device in self._shards:
            blocks = self._blocks[shard]
            block = blocks[ring.entry(self._seed, shard, index, len(blocks))]
            piece = np.zeros((self._capacity, *self._store.obs_shape), self._store.obs_dtype)
            piece[: len(block.frames)] = self._store.observations_at(block.frames)
            piece = jax.device_put(piece.reshape(*self._lead, *piece.shape), device)
            loaded.append((block, piece.block_until_ready()))
        return loaded

    def _put(self, slot: int, loaded: list[tuple[ring.Block, jax.Array]]) -> None:
        for place, (block, piece) in enumerate(loaded):
            offset = np.int32(slot * self._capacity)
            self._frames[place] = _write(self._frames[place], piece, offset, axis=len(self._lead))
            self._resident[place][slot] = block

    def _gather(self, phase: int, first_step: int) -> Buffer:
        buffers = []
        for frames, resident, (_, device) in zip(self._frames, self._resident, self._shards, strict=True):
            offsets = np.arange(ring.SLOTS) * self._capacity
            starts = np.concatenate([block.starts + offset for block, offset in zip(resident, offsets, strict=True)])
            places = np.concatenate([_filled(block.frames, self._capacity) for block in resident])
            scalars = (np.full(self._lead, value, np.int32) for value in (len(starts), phase, first_step))
            host = (_filled(starts, self._most_starts).reshape(*self._lead, -1), *scalars)
            host = (*host, places.reshape(*self._lead, -1))
            buffers.append(Buffer(frames, *(jax.device_put(array, device) for array in host)))
        return buffers[0] if self._devices is None else _joined(buffers, self._devices)


def evaluation_starts(
    store: Store,
    num_windows: int,
    batch_size: int,
    *,
    seed: int = 0,
    split: Split = "test",
    length: int = 3,
    mask_boundaries: bool = True,
) -> tuple[int, np.ndarray]:
    """The batch size and the first frames, int32 ``[num_windows]``, of the windows in `EvaluationWindows`."""
    starts = store.starts(split, length, mask_boundaries)
    if not len(starts):
        raise StoreError(f"the {split} split of {store.path} has no windows; record more episodes")
    batch_size = min(batch_size, num_windows, len(starts))
    num_windows = min(num_windows, len(starts)) // batch_size * batch_size
    return batch_size, np.sort(np.random.default_rng(seed).choice(starts, num_windows, replace=False))


class EvaluationWindows:
    """A fixed set of windows, in batches of one shape.

    Args:
        store: where the frames come from.
        num_windows: at most this many, drawn without replacement; fewer if the split has fewer.
        batch_size: size of the batches, which are all full; at most `num_windows`.
        seed: draws the windows.
        split: "test", "train" or "all".
        length: L, frames in a window.
        mask_boundaries: False also draws windows that cross episode ends.

    Attributes:
        starts: int32 [num_windows], first frames of the windows, ascending, as `evaluation_actions` needs them.
        windows: [num_windows, L, *obs_shape] in host memory.

    Raises:
        StoreError: the split has no windows.
    """

    def __init__(
        self,
        store: Store,
        *,
        num_windows: int,
        batch_size: int,
        seed: int = 0,
        split: Split = "test",
        length: int = 3,
        mask_boundaries: bool = True,
    ):
        self.batch_size, self.starts = evaluation_starts(
            store, num_windows, batch_size, seed=seed, split=split, length=length, mask_boundaries=mask_boundaries
        )
        self.windows = store.windows(self.starts, length)

    @functools.cached_property
    def batches(self) -> jax.Array:
        """All windows as [E / B, B, L, *obs_shape] in device memory: uploaded once, kept as long as this object."""
        return jax.device_put(self.windows.reshape(-1, self.batch_size, *self.windows.shape[1:]))


def shard_episodes(lengths: np.ndarray, num_shards: int) -> np.ndarray:
    """Distributes episodes over shards in contiguous runs, so that each shard reads its own part of the store.

    Args:
        lengths: integers [E], frames of each episode.
        num_shards: number of shards.

    Returns:
        int64 [E], ascending shard of each episode. A shard has its even share of frames, give or
        take the length of one episode.
    """
    lengths = np.asarray(lengths, np.int64)
    # Twice the middle of each episode, so that the arithmetic stays in integers.
    middle = 2 * np.cumsum(lengths) - lengths
    return middle * num_shards // max(2 * int(lengths.sum()), 1)


def _filled(numbers: np.ndarray, size: int) -> np.ndarray:
    """Pads numbers [n] with zeros: int32 [size]."""
    return np.pad(numbers, (0, size - len(numbers))).astype(np.int32)


def _starts_in(store: Store, frames: np.ndarray, length: int, mask_boundaries: bool) -> np.ndarray:
    """Where windows may start among `frames`, int64 [N] indices in the store, without crossing a gap in them."""
    pieces = np.cumsum(np.diff(frames, prepend=frames[:1]) != 1)
    return windows.valid_starts(store.is_first[frames], pieces, length=length, mask_boundaries=mask_boundaries)


def _frames_of(episodes: Episodes, chosen: np.ndarray) -> np.ndarray:
    """Indices in the store, int64 [N], of the frames of some episodes."""
    lengths = episodes.length[chosen]
    offsets = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) + np.repeat(episodes.start[chosen] - offsets, lengths)


def _upload(store: Store, frames: np.ndarray, shape: tuple[int, ...], device) -> jax.Array:
    """Copies frames to a device, as [*shape, *obs_shape], where the last axis of `shape` is time.

    It copies in pieces, so host memory never holds all frames at once.
    """
    buffer = jnp.zeros((*shape, *store.obs_shape), store.obs_dtype, device=device)
    for offset in range(0, len(frames), FRAMES_PER_COPY):
        piece = store.observations_at(frames[offset : offset + FRAMES_PER_COPY])
        piece = jax.device_put(piece.reshape(*shape[:-1], *piece.shape), device)
        buffer = _write(buffer, piece, np.int32(offset), axis=len(shape) - 1)
        buffer.block_until_ready()
    return buffer


@functools.partial(jax.jit, donate_argnums=0, static_argnames="axis")
def _write(buffer, piece, offset, axis):
    return jax.lax.dynamic_update_slice_in_dim(buffer, piece, offset, axis)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _jitted_sample(buffer, key, step, batch_size, length):
    return sample(buffer, key, step, batch_size, length=length)


def _pmapped_sample(devices: Sequence[jax.Device]):
    def sample_shard(buffer, key, step, batch_size, length):
        index = jax.lax.axis_index("devices")
        return sample(buffer, key, step, batch_size, length=length, axis_index=index, axis_size=len(devices))

    return jax.pmap(
        sample_shard,
        axis_name="devices",
        in_axes=(0, None, None, None, None),
        static_broadcasted_argnums=(3, 4),
        devices=list(devices),
    )


def _shards(devices: Sequence[jax.Device] | None) -> list[tuple[int, jax.Device | None]]:
    """The shards that this host holds, each with its device."""
    if devices is None:
        return [(0, None)]
    mine = parallel.local(devices)
    return [(shard, device) for shard, device in enumerate(devices) if device in mine]


def _joined(buffers: Sequence[Part], devices: Sequence[jax.Device]) -> Part:
    """Joins buffers, or labels, that lie on one device each, [1, ...], without copying them."""
    mesh = jax.sharding.Mesh(np.asarray(parallel.local(devices)), ("devices",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("devices"))

    def join(*shards):
        shape = (len(shards), *shards[0].shape[1:])
        return jax.make_array_from_single_device_arrays(shape, sharding, shards)

    return jax.tree.map(join, *buffers)
