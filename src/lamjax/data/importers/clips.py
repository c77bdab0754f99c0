"""Video files and folders of pictures as clips: which frames are kept, when each is shown, and their pixels.

Frames are chosen by their time stamps, so a variable frame rate is no special case: the frame at time t is the one that
a player shows then. Rotation that a file asks for is carried out, of interlaced frames one field is kept, and
transparent pixels are laid over black. Nothing larger than a block of frames is held in memory.

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
from lamjax.checks import check_fields
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
_MOST_MISSING = 0.25  # seconds by which a file may end before it says


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """Which frames of a video are kept, and in which size.

    Attributes:
      fps: so many frames a second, those that are shown at these times; None keeps all. Pictures in a folder have no
        times: they are taken to be so many a second.
      stride: keeps every so many of the frames that `fps` leaves.
      size: height and width in pixels; one number stands for both.
      crop: top, left, height and width of the part to keep, in pixels of the upright picture; empty keeps all of it.
      square: keeps the largest square in the middle, so that scaling does not distort the picture.
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
            raise ValueError("crop and square exclude each other: give one of them.")

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(H, W, 3)`` of a frame."""
        return self.size[0], self.size[-1], CHANNELS

    def as_json(self) -> dict[str, Any]:
        """The settings as a store's manifest keeps them."""
        return {**dataclasses.asdict(self), "size": list(self.shape[:2])}


@dataclasses.dataclass(frozen=True)
class Clip(SourceFile):
    """The frames to keep of a video file, or of a folder of pictures.

    Attributes:
      config: which frames, in which size.
      places: int64 ``[T]``, ascending, where each frame lies: its presentation time in units of the file's own, or its
        number where the file has no times.
      seconds: float64 ``[T]``, when each frame is shown, from the file's beginning; NaN where that is not known.
      expected: int64 ``[F]``, the places of all frames that the file must show; None where frames are counted, as in a
        file without times.
    """

    config: ClipConfig
    places: np.ndarray
    seconds: np.ndarray
    expected: np.ndarray | None


def as_json(clips: Sequence[Clip], root: Path) -> list[dict[str, Any]]:
    """The file, the number of frames and the time stamps of each clip, as a store's manifest keeps them."""
    return [
        {"file": clip.name(root), "frames": clip.rows, "seconds": timestamps.as_json(clip.seconds)} for clip in clips
    ]


def look_at(path: Path, config: ClipConfig) -> Clip:
    """Chooses the frames of a video file, or of a folder of pictures, without decoding any.

    Raises:
      ImportError: if PyAV is absent.
      DamagedFileError: if the file cannot be opened, or ends before it says.
      ImportDataError: if it holds no video, or has no time stamps by which to choose frames.
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
    """Which frames a player shows at the times ``times[0] + n / fps``.

    Args:
      times: float64 ``[F]``, ascending, when each frame appears. The last is shown for as long as most are.
      fps: how many times a second.

    Returns:
      int64 ``[T]``, ascending.
    """
    last = times[-1] + (np.median(np.diff(times)) if len(times) > 1 else 0.0)
    count = max(int(np.ceil((last - times[0] - _ROUNDING) * fps)), 1)
    wanted = times[0] + np.arange(count) / fps
    return np.searchsorted(times, wanted + _ROUNDING, side="right") - 1


def read_frames(clip: Clip, start: int = 0) -> Iterator[np.ndarray]:
    """The frames of a clip from row `start`, in blocks uint8 ``[R, H, W, 3]``.

    Raises:
      DamagedFileError: if a frame cannot be decoded.
      ImportDataError: if the part to keep does not lie in the picture.
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
    """The frames from row `start` one by one; a row's frame is the last one at or before its place."""
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
    """The frames of a clip and their places, in the order in which they are shown, from `place` or before it on."""
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
        frames.close()  # the file's index is of no use
    yield from _decoded(clip, None)


def import_av() -> Any:
    """PyAV; raises an ImportError that says how to install it."""
    try:
        import av
    except ImportError:
        raise ImportError('Reading videos needs PyAV: pip install "lamjax[video]".') from None
    return av


def _opened(path: Path) -> Any:
    """An open container that has a video stream, which decodes in several threads."""
    av = import_av()
    try:
        container = av.open(str(path))
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except (av.FFmpegError, ValueError) as error:
        raise DamagedFileError(path, f"it cannot be opened as a video: {_reason(error)}") from None
    if not container.streams.video:
        container.close()
        raise ImportDataError(f"{path} holds no video: leave it out.")
    container.streams.video[0].thread_type = "AUTO"
    return container


def _reason(error: Exception) -> str:
    return brief(Exception(getattr(error, "strerror", None) or str(error)))


def time_stamps(path: Path) -> tuple[np.ndarray, np.ndarray, bool]:
    """Places int64 and times float64 ``[F]``, in seconds, of the frames to show, and whether places are times.

    Raises:
      ImportError: if PyAV is absent.
      DamagedFileError: if the file cannot be opened, or ends before it says.
      ImportDataError: if it holds no video.
    """
    av = import_av()
    with _opened(path) as container:
        stream = container.streams.video[0]
        stamps: list[int | None] = []
        longest = 0  # for how long a frame is shown
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
        # Frames before the first key frame, which a cut leaves behind, cannot be decoded.
        places = np.unique([stamp for stamp in stamps if stamp >= stamps[0]])
        times = (places - places[0]) * float(stream.time_base)
        if not container.streams.audio:  # else the length may be the sound's
            missing = (container.duration or 0) / av.time_base - times[-1] - longest * float(stream.time_base)
            if missing > _MOST_MISSING:
                raise DamagedFileError(path, f"it ends {missing:.1f} s before it says")
        return places, times, True


def _decoded(clip: Clip, place: int | None) -> Iterator[tuple[int, Any]]:
    """The frames of a file and their places, from the last key frame before `place` on if the file can be searched."""
    av = import_av()
    count = 0
    with _opened(clip.path) as container:
        stream = container.streams.video[0]
        # Packets of VP8 may show nothing; of the others each shows a frame.
        expected = None if stream.codec_context.name in _HIDES_FRAMES else clip.expected
        begun = place is None
        if place is not None:
            with contextlib.suppress(av.FFmpegError):
                container.seek(place, stream=stream)
        try:
            for frame in container.decode(stream):
                shown = count if clip.expected is None else frame.pts
                # Before the first key frame a frame may lack those that it is predicted from.
                begun = begun or bool(frame.key_frame)
                if not begun or (clip.expected is not None and (shown is None or shown < clip.expected[0])):
                    continue
                if place is not None and not count:
                    count = int(np.searchsorted(clip.expected, shown))
                if frame.is_corrupt or (expected is not None and shown != expected[min(count, len(expected) - 1)]):
                    raise DamagedFileError(clip.path, f"frame {count} cannot be decoded")
                count += 1
                yield shown, frame
        except av.FFmpegError as error:
            raise DamagedFileError(clip.path, f"frame {count}: {_reason(error)}") from None


def _pictures(folder: Path) -> list[Path]:
    """The pictures of a folder in the order of their names, numbers in them counted."""
    paths = (path for path in folder.iterdir() if path.suffix.lower() in PICTURES and path.name[0] not in "._")
    return sorted(paths, key=lambda path: natural(path.name))


def _pictures_of(clip: Clip) -> Iterator[tuple[int, Any]]:
    """Each picture of a folder as a frame, and its number."""
    for number, path in enumerate(_pictures(clip.path)):
        try:
            yield number, frame_of(read_picture(path))
        except PictureError as error:
            raise DamagedFileError(path, str(error)) if error.damaged else ImportDataError(f"{path} {error}.") from None


def frame_of(pixels: np.ndarray) -> Any:
    """Pixels uint8 ``[H, W]``, ``[H, W, 3]`` or ``[H, W, 4]`` as a frame of PyAV: grey, RGB, or RGB and alpha."""
    form = "gray" if pixels.ndim == 2 else {3: "rgb24", 4: "rgba"}[pixels.shape[2]]
    return import_av().VideoFrame.from_ndarray(np.ascontiguousarray(pixels), form)


def converter(config: ClipConfig, path: Path) -> Callable[[Any], np.ndarray]:
    """A function from a frame of PyAV to pixels uint8 ``[H, W, 3]``; it keeps the filters that it builds.

    The function raises an `ImportDataError`, which names the path, if the part to keep does not lie in the picture.
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
    """A graph that turns, crops and scales frames, and the format of the pixels that it gives, "rgb24" or "rgba"."""
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
    """Top, left, height and width of the part to keep of an upright picture."""
    if config.square:
        side = min(height, width)
        return (height - side) // 2, (width - side) // 2, side, side
    if not config.crop:
        return 0, 0, height, width
    top, left, rows, columns = config.crop
    if top + rows > height or left + columns > width:
        raise ImportDataError(
            f"{path} has pictures of {height} x {width}, and the part to keep ends at row {top + rows} and column "
            f"{left + columns}: change --crop."
        )
    return top, left, rows, columns
