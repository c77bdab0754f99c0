"""Decodes images to frames: PNGs without any loss, and images of any format as a viewer would show them."""

import io
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lamjax.archives import brief

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_OTHERS = {
    b"\xff\xd8\xff": "JPEG",
    b"GIF8": "GIF",
    b"RIFF": "WebP",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"\x93NUMPY": "numpy array",
    b"\x00\x00\x00\x0cjP": "JPEG 2000",
    b"\xff\x0a": "JPEG XL",
    b"qoif": "QOI",
}
_NAMES = {1: "grey", 2: "grey and alpha", 3: "RGB", 4: "RGBA"}


class PictureError(Exception):
    """Raised if an image does not fit; the message is one sentence that does not say where the image is.

    Attributes:
      damaged: whether the image is damaged.
    """

    def __init__(self, sentence: str, damaged: bool = False):
        """Takes the message."""
        super().__init__(sentence)
        self.damaged = damaged


def read_png(data: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    """Decodes a PNG without any loss.

    Palettes are looked up, and grey values are repeated in all colour channels. Colour or alpha channels are dropped
    only if that loses nothing, because all pixels are grey, or opaque.

    Args:
      data: the file's content. Its header is checked against the shape before anything is decoded.
      shape: ``(H, W, C)``; C is 1 for grey, 2 for grey and alpha, 3 for RGB, 4 for RGBA.

    Returns:
      uint8 ``[H, W, C]``.

    Raises:
      PictureError: if it is damaged, not a PNG, of another size, of 16 bits, animated, or does not fit into C channels.
    """
    height, width, channels = shape
    if not data.startswith(_SIGNATURE):
        kind = next((name for start, name in _OTHERS.items() if data.startswith(start)), None)
        kind = "AVIF or HEIF" if data[4:8] == b"ftyp" else kind
        if kind is None and len(data) == height * width * channels:
            raise PictureError("has bytes that are not a PNG, but as many as a frame has: save them as a list of uint8")
        if kind is None:
            raise PictureError("has an image that is damaged or not a PNG", damaged=True)
        raise PictureError(f"has {kind} data, but only PNG images can be read: save it as PNG")
    if len(data) < 33 or data[12:16] != b"IHDR" or struct.pack(">I", zlib.crc32(data[12:29])) != data[29:33]:
        raise PictureError("has an image with a damaged header", damaged=True)
    size = struct.unpack(">II", data[16:24])
    if size != (width, height):
        raise PictureError(
            f"has an image of {size[1]} x {size[0]}, not {list(shape)}: use --shape {size[1]} {size[0]} {channels}"
        )
    if data[24] == 16:
        raise PictureError("has images with 16 bits per channel, but frames have 8: save them with 8")
    if channels not in _NAMES:
        raise PictureError(f"has images, which have 1 to 4 channels, not {channels}: change --shape")
    return _without_loss(_decode(data), channels)


def read_picture(source: Path | BinaryIO) -> np.ndarray:
    """Decodes an image of any format that Pillow reads, and rotates it as its metadata asks.

    Args:
      source: a file, or its content.

    Returns:
      uint8 ``[H, W, 3]``, or ``[H, W, 4]`` if the image has an alpha channel.

    Raises:
      PictureError: if it is damaged, not an image, or has more than 8 bits per channel.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(source) as image:
            if image.mode.startswith(("I", "F")):
                raise PictureError("has more than 8 bits per channel: save it with 8")
            upright = ImageOps.exif_transpose(image)
            alpha = "A" in upright.getbands() or "transparency" in upright.info
            return np.ascontiguousarray(upright.convert("RGBA" if alpha else "RGB"))
    except PictureError:
        raise
    except Exception as error:  # Pillow raises many kinds of errors for damaged images
        raise PictureError(brief(error), damaged=True) from None


def _decode(data: bytes) -> np.ndarray:
    """Decodes to uint8 ``[H, W]`` or ``[H, W, 3]`` if there is no alpha channel and no palette, else to RGBA."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            image.verify()  # checks the checksums, which decoding does not
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if getattr(image, "n_frames", 1) > 1:
                raise PictureError(f"has an animation of {image.n_frames} images in one PNG: save each by itself")
            plain = image.mode in ("L", "RGB") and "transparency" not in image.info
            return np.asarray(image if plain else image.convert("RGBA"))
    except PictureError:
        raise
    except Image.UnidentifiedImageError:  # whose message is an address in memory
        raise PictureError("has an image that is damaged or not a PNG", damaged=True) from None
    except Exception as error:  # Pillow raises many kinds of errors for damaged PNGs
        raise PictureError(f"has an image that is damaged ({brief(error)})", damaged=True) from None


def _without_loss(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Converts pixels to C channels, ``[H, W, C]``; raises if that would lose colours or transparency."""
    colours = pixels[..., None] if pixels.ndim == 2 else pixels[..., :3]
    alpha = pixels[..., 3:] if pixels.shape[2:] == (4,) else np.full_like(colours[..., :1], 255)
    if channels < 3 and (colours != colours[..., :1]).any():
        raise PictureError(f"has a colour image, not {_NAMES[channels]}: use --shape H W {channels + 2}")
    if channels % 2 and (alpha != 255).any():
        raise PictureError(f"has a transparent image, not {_NAMES[channels]}: use --shape H W {channels + 1}")
    colours = np.broadcast_to(colours, (*colours.shape[:2], 3)) if channels > 2 else colours[..., :1]
    return np.concatenate([colours, alpha], 2) if channels % 2 == 0 else np.ascontiguousarray(colours)
