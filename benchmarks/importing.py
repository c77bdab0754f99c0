"""Importing video: from h264 at 640 x 480 pixels to a store at 64 x 64, and decoding only."""

import shutil
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure
from benchmarks.settings import Settings
from lamjax.data.importers.video import import_video

HEIGHT, WIDTH, FRAMES, RATE, COPIES = 480, 640, 150, 30, 6


def write_footage(path: Path) -> None:
    """Writes a view that moves over a scene, with the noise of a camera."""
    import av

    rng = np.random.default_rng(0)
    scene = np.kron(rng.integers(0, 230, (HEIGHT // 16, WIDTH // 16, 3)), np.ones((16, 16, 1), int))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "23"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for t in range(FRAMES):
            noisy = np.roll(scene, (t, 2 * t), (0, 1)) + rng.integers(0, 12, (HEIGHT, WIDTH, 1))
            frame = av.VideoFrame.from_ndarray(noisy.astype(np.uint8), format="rgb24")
            frame.pts, frame.time_base = t, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def decode(path: Path) -> int:
    """Decodes a video in several threads without looking at any frame."""
    import av

    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        return sum(1 for _ in container.decode(video=0))


def _milliseconds(call: Callable[..., Any], *args: Any, **options: Any) -> float:
    start = time.perf_counter()
    call(*args, **options)
    return 1e3 * (time.perf_counter() - start)


def row(settings: Settings, torch_rate: float | None) -> dict[str, Any]:
    """Frames per second of a whole import, as a share of the decoder's rate.

    The two take turns, so that other load slows both.
    """
    times = []
    with tempfile.TemporaryDirectory() as folder:
        clips = Path(folder) / "clips"
        clips.mkdir()
        write_footage(clips / "0.mp4")
        paths = [Path(shutil.copy(clips / "0.mp4", clips / f"{n}.mp4")) for n in range(1, COPIES)]
        paths.append(clips / "0.mp4")
        for n in range(1 + max(3, settings.repeats // 5)):  # the first does not count
            alone = _milliseconds(lambda: [decode(path) for path in paths])
            times.append([alone, _milliseconds(import_video, [clips], Path(folder) / f"store{n}", env="clips")])
    alone, whole = np.array(times[1:]).T
    share = float(np.median(alone / whole))
    frames = COPIES * FRAMES
    row = measure.row("import", settings.size, frames, "frames/s", frames, [(1, whole)], of_decoder=share)
    return row | {"dtype": "uint8"}
