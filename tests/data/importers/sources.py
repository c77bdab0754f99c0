"""Made-up episodes in the formats of published data sets."""

import io
import zlib

import numpy as np

SHAPE = (8, 8, 3)


def episodes(lengths, shape=SHAPE, seed=0, ramp=2):
    """Frames that change little within an episode and much between two, with actions and rewards that tell the row."""
    rng = np.random.default_rng(seed)
    obs = []
    for length in lengths:
        start = rng.integers(0, 200, shape)
        obs.append(start + ramp * np.arange(length).reshape(-1, 1, 1, 1) % 40)
    obs = np.concatenate(obs).astype(np.uint8)
    rows = np.arange(len(obs))
    return obs, (rows * 7 % 15).astype(np.int64), rows.astype(np.float32) / 8


def marks(lengths, meaning, total):
    """``done`` of episodes with these lengths, in a file of `total` rows."""
    ends = np.cumsum(lengths)
    done = np.zeros(total, bool)
    where = ends if meaning == "first" else ends - 1
    done[where[where < total]] = True
    return done


def lapo_file(path, lengths, meaning="last", seed=0, ends=True, compressed=True, **changes):
    """Writes one chunk; with ``ends=False`` the last episode runs on beyond the file."""
    obs, actions, rewards = episodes(lengths, seed=seed)
    done = marks(lengths if ends else lengths[:-1], meaning, len(obs))
    entries = {"obs": obs, "ta": actions, "done": done, "rewards": rewards}
    entries |= {"ep_returns": rewards, "values": rewards, "logprobs": rewards}
    entries = {name: array for name, array in (entries | changes).items() if array is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    (np.savez_compressed if compressed else np.savez)(path, **entries)
    return obs, actions, rewards


def png(frame):
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(frame).save(out, format="PNG")
    return out.getvalue()


def flip(path, where):
    """Flips a bit of a file at a fraction of its length."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * where)] ^= 16
    path.write_bytes(data)
    return zlib.crc32(data)
