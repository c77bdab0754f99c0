"""Frames as images: grids on whole pixels, and animations.

Frames are uint8 `[..., H, W, C]`; if C is not 1 or 3, each channel gets a colour.
"""

import io
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, ImageDraw, ImageFont

from lamjax.analysis.drawing import CLASSES, DOTS_PER_INCH, INK, SMALL_FONT, plain

TILE_PIXELS = 190  # width of one animated frame, before rounding to whole pixels
GIF_BYTES = 1_500_000


def rgb(frames: np.ndarray) -> np.ndarray:
    """Converts frames uint8 [..., H, W, C] to RGB [..., H, W, 3]; if C is not 1 or 3, each channel gets a colour."""
    channels = frames.shape[-1]
    if channels == 3:
        return frames
    if channels == 1:
        return np.repeat(frames, 3, axis=-1)
    colours = np.array([to_rgb(CLASSES[channel % len(CLASSES)]) for channel in range(channels)])
    return (np.max(frames[..., None] / max(frames.max(initial=0), 1) * colours, axis=-2) * 255).astype(np.uint8)


def image_grid(
    rows: np.ndarray,
    columns: list[str],
    notes: list[str],
    pixels: int,
    notes_at: int = 0,
    squares: np.ndarray | None = None,
    squares_at: int = 0,
) -> Figure:
    """Draws frames [rows, columns, H, W, 3] on whole pixels, with a heading per column and a note above each row.

    In column `squares_at` it outlines `squares` int [rows, 3]: the upper left corner, row and column, and the side.
    """
    count, width = rows.shape[:2]
    height_px, width_px = (max(1, round(pixels / rows.shape[3])) * size for size in rows.shape[2:4])
    gap, heading, note = 8, 24, 22
    total_w = width * (width_px + gap) - gap
    total_h = heading + count * (note + height_px)
    fig = Figure(figsize=(total_w / DOTS_PER_INCH, total_h / DOTS_PER_INCH), facecolor="white")
    ax = fig.add_axes((0, 0, 1, 1))
    style: dict[str, Any] = {"fontsize": SMALL_FONT, "color": INK, "va": "center"}
    for column, label in enumerate(columns):
        centre = column * (width_px + gap) + width_px / 2
        ax.text(centre, heading / 2, label, ha="center", fontweight="bold", **style)
    for row in range(count):
        top = heading + row * (note + height_px) + note
        ax.text(notes_at * (width_px + gap), top - note / 2, plain(notes[row]), **style)
        for column in range(width):
            left = column * (width_px + gap)
            extent = (left, left + width_px, top + height_px, top)
            ax.imshow(rows[row, column], extent=extent, interpolation="none", aspect="auto")
            if squares is not None and column == squares_at:
                scale_y, scale_x = height_px / rows.shape[2], width_px / rows.shape[3]
                y, x, side = squares[row]
                corner = (left + x * scale_x, top + y * scale_y)
                ax.add_patch(Rectangle(corner, side * scale_x, side * scale_y, fill=False, ec="white", lw=1.5))
    ax.set(xlim=(0, total_w), ylim=(total_h, 0))  # in pixels, from the top
    ax.set_axis_off()
    return fig


def rollout_gif(frames: np.ndarray, labels: list[str], max_bytes: int = GIF_BYTES) -> bytes:
    """Animates the rollouts that the FDM imagines from one frame, one for each constant latent action.

    Args:
        frames: uint8 [A, T, H, W, C].
        labels: [A], written above each tile.
        max_bytes: shrinks the frames, then reduces the colours, until the file is no larger than this.

    Returns:
        A GIF that loops for ever.
    """
    largest = max(1, round(TILE_PIXELS / frames.shape[3]))
    attempts = [(scale, 128) for scale in range(largest, 0, -1)] + [(1, 32), (1, 8)]
    for scale, colours in attempts:
        gif = _encode_gif([_tile(images, labels, scale) for images in np.swapaxes(rgb(frames), 0, 1)], colours)
        if len(gif) <= max_bytes:
            break
    return gif


_FONT_FILE = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")  # the font of the other figures
_PLATE = [(31 + 40 * shade, 35 + 39 * shade, 40 + 39 * shade) for shade in range(6)]  # dark background to light text


def _tile(images: np.ndarray, labels: list[str], scale: int) -> Image.Image:
    """Enlarges images [A, H, W, 3] by a whole factor, in rows of at most four, each below its label."""
    count, height, width = images.shape[:3]
    height, width = scale * height, scale * width
    columns, gap, heading = min(count, 4), 8, 22
    rows = -(-count // columns)
    size = (columns * (width + gap) + gap, rows * (heading + height + gap))
    canvas = Image.new("RGB", size, _PLATE[0])
    draw, font = ImageDraw.Draw(canvas), ImageFont.truetype(_FONT_FILE, 12)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        x = gap + index % columns * (width + gap)
        y = index // columns * (heading + height + gap)
        while draw.textlength(label, font=font) > width and len(label) > 1:
            label = label[:-2] + "…"
        draw.text((x, y + heading / 2), label, fill=_PLATE[-1], font=font, anchor="lm")
        canvas.paste(Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST), (x, y + heading))
    return canvas


def _encode_gif(images: list[Image.Image], colours: int) -> bytes:
    """A GIF of the images with one palette for all; the last one stays for a second."""
    samples = [np.asarray(images[index]) for index in (0, len(images) // 2, -1)]
    chosen = Image.fromarray(np.concatenate(samples)).quantize(colours - len(_PLATE), dither=Image.Dither.NONE)
    palette = Image.new("P", (1, 1))
    palette.putpalette([*(chosen.getpalette() or ()), *np.ravel(_PLATE)])
    indexed = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    durations = [150] * (len(indexed) - 1) + [1000]
    buffer = io.BytesIO()
    indexed[0].save(buffer, "GIF", save_all=True, append_images=indexed[1:], duration=durations, loop=0)
    return buffer.getvalue()
