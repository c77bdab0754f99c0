"""Reads video files and folders of images as clips: which frames to keep, when each is shown, and their pixels.

Frames are chosen by their time stamps, so a variable frame rate is no special case: the frame at time t is the one that
a player shows then. Frames are rotated as the file asks, one field of interlaced frames is kept, and transparent pixels
are composited over black. Nothing larger than a block of frames is held in memory.

Dimension keys: T frames of a clip, R frames of a block, H, W of a frame.
"""

import contextlib
import dataclasses
import fractions
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lamjax.archives import brief
from lamjax.checks import check_fields, library
from lamjax.data import timestamps
from lamjax.data.importers.common import SourceFile, block_rows
from lamjax.data.importers.errors import DamagedFileError, ImportDataError
from lamjax.data.importers.files import natural
from lamjax.data.importers.pictures import PictureError, read_picture

VIDEOS = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif"),
    *(".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".ogv"),
)
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
CHANNELS = 3

_ROUNDING = 1e-3  # seconds; some files round time stamps to thousandths
_HIDES_FRAMES = ("vp8", "libvpx")
_MOST_MISSING = 0.25  # seconds by which a file may be shorter than its header says


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """Which frames of a video to keep, and at which size.

    Attributes:
      fps: frames to keep per second of video, each the one that is shown at that time; None keeps all frames. A folder
        of images has no times; its images are assumed to follow each other at this rate.
      stride: keeps every n-th of the frames that `fps` leaves.
      size: height and width in pixels; one number stands for both.
      crop: top, left, height and width of the region to keep, in pixels of the upright image; empty keeps all of it.
      square: keeps the largest square in the middle, so that scaling does not distort the image.
    """

    fps: float | None = None
    stride: int = 1
    size: tuple[int, ...] = (64,)
    crop: tuple[int, ...] = ()
    square: bool = False

    def __post_init__(self):
        check_fields(self, at_least_1=("stride", "size"), at_least_0=("crop",), above_0=("fps",), not_empty=("size",))
        if len(self.size) > 2:
            raise ValueError(f"size must be a height and a width, or one number for both, not {self.size}.")
        if self.crop and (len(self.crop) != 4 or not min(self.crop[2:])):
            raise ValueError(f"crop must be top, left, height and width, not {self.crop}.")
        if self.crop and self.square:
            raise ValueError("crop and square exclude each other: give only one of them.")

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(H, W, 3)`` of a frame."""
        return self.size[0], self.size[-1], CHANNELS

    def as_json(self) -> dict[str, Any]:
        """The settings as a store's manifest records them."""
        return {**dataclasses.asdict(self), "size": list(self.shape[:2])}


@dataclasses.dataclass(frozen=True)
class Clip(SourceFile):
    """The frames to keep from a video file or a folder of images.

    Attributes:
      config: which frames to keep, and at which size.
      places: int64 ``[T]``, ascending, the position of each frame: its presentation time in the file's own time base,
        or its number if the file has no time stamps.
      seconds: float64 ``[T]``, when each frame is shown, counted from the start of the file; NaN if unknown.
      expected: int64 ``[F]``, the positions of all frames that the file must show; None if positions are frame numbers,
        as in a file without time stamps.
    """

    config: ClipConfig
    places: np.ndarray
    seconds: np.ndarray
    expected: np.ndarray | None


def as_json(clips: Sequence[Clip], root: Path) -> list[dict[str, Any]]:
    """The file, the number of frames and the time stamps of each clip, as a store's manifest records them."""
    return [
        {"file": clip.name(root), "frames": clip.rows, "seconds": timestamps.as_json(clip.seconds)} for clip in clips
    ]


def look_at(path: Path, config: ClipConfig) -> Clip:
    """Chooses the frames of a video file or a folder of images without decoding any.

    Raises:
      ImportError: if PyAV is not installed.
      DamagedFileError: if the file cannot be opened, or is shorter than its header says.
      ImportDataError: if it contains no video, or `fps` is set and it has no time stamps.
    """
    import_av()
    expected = None
    if path.is_dir():
        places = np.arange(len(_pictures(path)))
        times = places / config.fps if config.fps else np.full(len(places), np.nan)
    else:
        places, times, has_times = time_stamps(path)
        expected = places if has_times else None
        if config.fps and not np.isfinite(times).all():
            raise ImportDataError(f"{path} does not say when its frames are shown: leave out --fps, or convert it.")
        if config.fps:
            chosen = shown_at(times, config.fps)
            places, times = places[chosen], times[chosen]
    places, times = places[:: config.stride], times[:: config.stride]
    return Clip(path, len(places), None, config, places, times, expected)


def shown_at(times: np.ndarray, fps: float) -> np.ndarray:
    """Returns the frames that a player shows at the times ``times[0] + n / fps``.

    Args:
      times: float64 ``[F]``, ascending, when each frame appears, in seconds. The last frame is assumed to last for the
        median duration.
      fps: frames per second.

    Returns:
      Indices of frames, int64 ``[T]``, ascending.
    """
    last = times[-1] + (np.median(np.diff(times)) if len(times) > 1 else 0.0)
    count = max(int(np.ceil((last - times[0] - _ROUNDING) * fps)), 1)
    wanted = times[0] + np.arange(count) / fps
    return np.searchsorted(times, wanted + _ROUNDING, side="right") - 1


def read_frames(clip: Clip, start: int = 0) -> Iterator[np.ndarray]:
    """Yields the frames of a clip from row `start` on, in blocks uint8 ``[R, H, W, 3]``.

    Raises:
      DamagedFileError: if a frame cannot be decoded.
      ImportDataError: if the region to keep does not lie within the image.
    """
    block: list[np.ndarray] = []
    most = block_rows(clip.config.shape)
    for pixels in _pixels(clip, start):
        block.append(pixels)
        if len(block) == most:
            yield np.stack(block)
            block = []
    if block:
        yield np.stack(block)


def _pixels(clip: Clip, start: int) -> Iterator[np.ndarray]:
    """Yields the frames from row `start` on one by one; a row's frame is the last one at or before its position."""
    if start >= clip.rows:
        return
    convert = converter(clip.config, clip.path)
    row, previous, pixels = start, None, None
    for place, frame in _shown(clip, int(clip.places[start])):
        while row < clip.rows and previous is not None and clip.places[row] < place:
            pixels = convert(previous) if pixels is None else pixels
            yield pixels
            row += 1
        if row == clip.rows:
            return
        previous, pixels, reached = frame, None, place
    if previous is None or reached < clip.places[-1]:
        raise DamagedFileError(clip.path, "its last frames cannot be decoded")
    pixels = convert(previous) if pixels is None else pixels
    for _ in range(row, clip.rows):
        yield pixels


def _shown(clip: Clip, place: int) -> Iterator[tuple[int, Any]]:
    """Yields positions and frames in display order, starting at or before the position `place`."""
    if clip.path.is_dir():
        yield from _pictures_of(clip)
        return
    if clip.expected is not None and place > clip.expected[0]:
        frames = _decoded(clip, place)
        first = next(frames, None)
        if first is not None and first[0] <= place:
            yield first
            yield from frames
            return
        frames.close()  # seeking did not work: decode from the start
    yield from _decoded(clip, None)


def import_av() -> Any:
    """Returns PyAV, or raises an `ImportError` that says how to install it."""
    return library("av", 'Reading videos needs PyAV: pip install "lamjax[video]".')


def _opened(path: Path) -> Any:
    """Opens a container that has a video stream, and decodes it in several threads."""
    av = import_av()
    try:
        container = av.open(str(path))
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except (av.FFmpegError, ValueError) as error:
        raise DamagedFileError(path, f"it cannot be opened as a video: {_reason(error)}") from None
    if not container.streams.video:
        container.close()
        raise ImportDataError(f"{path} contains no video: leave it out.")
    container.streams.video[0].thread_type = "AUTO"
    return container


def _reason(error: Exception) -> str:
    return brief(Exception(getattr(error, "strerror", None) or str(error)))


def time_stamps(path: Path) -> tuple[np.ndarray, np.ndarray, bool]:
    """Positions int64 and times float64 ``[F]``, in seconds, of the frames to show; and whether positions are times.

    Raises:
      ImportError: if PyAV is not installed.
      DamagedFileError: if the file cannot be opened, or is shorter than its header says.
      ImportDataError: if it contains no video.
    """
    av = import_av()
    with _opened(path) as container:
        stream = container.streams.video[0]
        stamps: list[int | None] = []
        longest = 0  # the longest duration of a frame
        try:
            for packet in container.demux(stream):
                if packet.is_corrupt:
                    raise DamagedFileError(path, f"frame {len(stamps)} is damaged")
                if packet.size and not packet.is_discard and (stamps or packet.is_keyframe):
                    stamps.append(packet.pts)
                    longest = max(longest, packet.duration or 0)
        except av.FFmpegError as error:
            raise DamagedFileError(path, _reason(error)) from None
        if not stamps:
            raise DamagedFileError(path, "it holds no frames")
        if None in stamps:
            rate = float(stream.average_rate or 0)
            places = np.arange(len(stamps))
            return places, places / rate if rate else np.full(len(stamps), np.nan), False
        # Cutting a video can leave frames before the first key frame, which cannot be decoded.
        places = np.unique([stamp for stamp in stamps if stamp >= stamps[0]])
        times = (places - places[0]) * float(stream.time_base)
        if not container.streams.audio:  # otherwise the duration may be that of the sound
            missing = (container.duration or 0) / av.time_base - times[-1] - longest * float(stream.time_base)
            if missing > _MOST_MISSING:
                raise DamagedFileError(path, f"it ends {missing:.1f} s earlier than its header says")
        return places, times, True


def _decoded(clip: Clip, place: int | None) -> Iterator[tuple[int, Any]]:
    """Yields positions and frames of a file, starting at the last key frame before `place` if the file is seekable."""
    av = import_av()
    count = 0
    with _opened(clip.path) as container:
        stream = container.streams.video[0]
        # VP8 has packets that show nothing. In other codecs every packet shows a frame.
        expected = None if stream.codec_context.name in _HIDES_FRAMES else clip.expected
        begun = place is None
        if place is not None:
            with contextlib.suppress(av.FFmpegError):
                container.seek(place, stream=stream)
        try:
            for frame in container.decode(stream):
                time = count if clip.expected is None else frame.pts
                # A frame before the first key frame may lack its reference frames.
                begun = begun or bool(frame.key_frame)
                if not begun or (clip.expected is not None and (time is None or time < clip.expected[0])):
                    continue
                if place is not None and not count:
                    count = int(np.searchsorted(clip.expected, time))
                if frame.is_corrupt or (expected is not None and time != expected[min(count, len(expected) - 1)]):
                    raise DamagedFileError(clip.path, f"frame {count} cannot be decoded")
                count += 1
                yield time, frame
        except av.FFmpegError as error:
            raise DamagedFileError(clip.path, f"frame {count}: {_reason(error)}") from None


def _pictures(folder: Path) -> list[Path]:
    """The images of a folder, sorted by name, with numbers in the names in numerical order."""
    paths = (path for path in folder.iterdir() if path.suffix.lower() in PICTURES and path.name[0] not in "._")
    return sorted(paths, key=lambda path: natural(path.name))


def _pictures_of(clip: Clip) -> Iterator[tuple[int, Any]]:
    """Yields the number of each image of a folder, and the image as a frame."""
    for number, path in enumerate(_pictures(clip.path)):
        try:
            yield number, frame_of(read_picture(path))
        except PictureError as error:
            raise DamagedFileError(path, str(error)) if error.damaged else ImportDataError(f"{path} {error}.") from None


def frame_of(pixels: np.ndarray) -> Any:
    """Converts pixels uint8 ``[H, W]`` (grey), ``[H, W, 3]`` (RGB) or ``[H, W, 4]`` (RGBA) to a PyAV frame."""
    form = "gray" if pixels.ndim == 2 else {3: "rgb24", 4: "rgba"}[pixels.shape[2]]
    return import_av().VideoFrame.from_ndarray(np.ascontiguousarray(pixels), form)


def converter(config: ClipConfig, path: Path) -> Callable[[Any], np.ndarray]:
    """Returns a function from a PyAV frame to pixels uint8 ``[H, W, 3]``; it caches the filters that it builds.

    The function raises an `ImportDataError` that names the path if the region to keep does not lie within the image.
    """

    @functools.lru_cache(4)
    def filters(*form: Any) -> tuple[Any, str]:
        return _filters(config, path, *form)

    def convert(frame: Any) -> np.ndarray:
        interlaced, quarters = bool(frame.interlaced_frame), round(frame.rotation / 90) % 4
        graph, output = filters(frame.width, frame.height, frame.format.name, interlaced, quarters)
        frame.pts = None
        graph.push(frame)
        pixels = graph.pull().to_ndarray(format=output)
        if output == "rgba":
            pixels = ((pixels[..., :3].astype(np.uint16) * pixels[..., 3:] + 127) // 255).astype(np.uint8)
        return pixels

    return convert


_TURNS = {0: (), 1: (("transpose", "cclock"),), 2: (("hflip", ""), ("vflip", "")), 3: (("transpose", "clock"),)}


def _filters(
    config: ClipConfig, path: Path, width: int, height: int, pixel_format: str, interlaced: bool, quarters: int
) -> tuple[Any, str]:
    """Builds a graph that rotates, crops and scales frames; also returns its pixel format, "rgb24" or "rgba"."""
    av = import_av()
    form = av.VideoFormat(pixel_format)
    output = "rgba" if form.has_palette or any(each.is_alpha for each in form.components) else "rgb24"
    upright = (width, height) if quarters % 2 else (height, width)
    top, left, rows, columns = _part(config, path, *upright)
    steps = list(_TURNS[quarters])
    if (rows, columns) != upright:
        steps.append(("crop", f"{columns}:{rows}:{left}:{top}:exact=1"))
    if interlaced and quarters % 2 == 0:
        steps.append(("field", "type=top"))
    steps.append(("scale", f"{config.shape[1]}:{config.shape[0]}:flags=area+accurate_rnd+full_chroma_int"))
    steps.append(("format", f"pix_fmts={output}"))
    graph = av.filter.Graph()
    source = graph.add_buffer(width=width, height=height, format=form, time_base=fractions.Fraction(1, 1))
    nodes = [graph.add(name, options) if options else graph.add(name) for name, options in steps]
    graph.link_nodes(source, *nodes, graph.add("buffersink")).configure()
    return graph, output


def _part(config: ClipConfig, path: Path, height: int, width: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of the region to keep of an upright image."""
    if config.square:
        side = min(height, width)
        return (height - side) // 2, (width - side) // 2, side, side
    if not config.crop:
        return 0, 0, height, width
    top, left, rows, columns = config.crop
    if top + rows > height or left + columns > width:
        raise ImportDataError(
            f"{path} has frames of {height} x {width}, but the region to keep ends at row {top + rows} and column "
            f"{left + columns}: change --crop."
        )
    return top, left, rows, columns
