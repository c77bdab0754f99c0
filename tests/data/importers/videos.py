"""Small videos, written by the tests themselves."""

from fractions import Fraction

import av
import numpy as np


def write_video(path, frames, codec="ffv1", pixels="bgr0", *, rate=10, times=None, rotation=None, **options):
    """Writes frames uint8 ``[T, H, W]``, ``[T, H, W, 3]`` or ``[T, H, W, 4]``; `times` count in units of 1 / rate."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {2: "gray", 3: "rgb24", 4: "rgba"}[2 if frames.ndim == 3 else frames.shape[-1]]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options={name: str(value) for name, value in options.items()})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for number, pixels_of in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels_of, format=kind)
            frame.pts, frame.time_base = number if times is None else int(times[number]), Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return frames


def noise(frames=12, height=16, width=16, channels=3, seed=0):
    """Frames that no two of which are alike."""
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, channels), np.uint8)


def quarters(frames=6, height=24, width=32):
    """A still picture with a red, a green and a blue quarter and a black one, which tells every rotation."""
    picture = np.zeros((height, width, 3), np.uint8)
    h, w = height // 2, width // 2
    picture[:h, :w], picture[h:, :w], picture[:h, w:] = (200, 40, 40), (40, 200, 40), (40, 40, 200)
    return np.broadcast_to(picture, (frames, *picture.shape)).copy()


def write_lossless(path, frames, rate=10):
    """Writes an mp4 file whose frames come back bit for bit."""
    return write_video(path, frames, "libx264rgb", "rgb24", rate=rate, qp=0, g=5)
