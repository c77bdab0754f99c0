"""A picture becomes exactly the numbers it shows, or is refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from lamjax.data.importers.pictures import PictureError, read_png

H, W = 8, 6
RGBA = np.random.default_rng(0).integers(0, 255, (H, W, 4), np.uint8)  # below 255: every pixel is transparent
RGB, GREY, ALPHA = RGBA[..., :3], RGBA[..., :1], RGBA[..., 3:]
OPAQUE = np.full_like(GREY, 255)
BITS = np.where(GREY > 127, 255, 0).astype(np.uint8)
GREY_3 = np.repeat(GREY, 3, -1)
PALETTE = np.random.default_rng(1).integers(0, 256, (256, 3), np.uint8)


def saved(image, kind="PNG", **options):
    out = io.BytesIO()
    image = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image) if isinstance(image, np.ndarray) else image
    image.save(out, kind, **options)
    return out.getvalue()


def indexed(**options):
    image = Image.fromarray(GREY[..., 0], "P")
    image.putpalette(PALETTE.ravel().tolist())
    return saved(image, **options)


LOOKED_UP = PALETTE[GREY[..., 0]]
SEEN = np.where(GREY[2, 3] == GREY, 0, 255).astype(np.uint8)  # one index or colour is transparent


@pytest.mark.parametrize(
    ("data", "want"),
    [
        (saved(GREY), GREY),
        (saved(RGBA[..., 2:]), RGBA[..., 2:]),
        (saved(RGB), RGB),
        (saved(RGBA), RGBA),
        # What loses nothing.
        (saved(GREY), GREY_3),
        (saved(GREY), np.concatenate([GREY, OPAQUE], -1)),
        (saved(GREY_3), GREY),
        (saved(np.concatenate([RGB, OPAQUE], -1)), RGB),
        (saved(np.concatenate([GREY_3, ALPHA], -1)), np.concatenate([GREY, ALPHA], -1)),
        (saved(RGB), np.concatenate([RGB, OPAQUE], -1)),
        # Other ways to keep a picture.
        (saved(Image.fromarray(BITS[..., 0]).convert("1")), BITS),
        (indexed(), LOOKED_UP),
        (indexed(transparency=int(GREY[2, 3, 0])), np.concatenate([LOOKED_UP, SEEN], -1)),
        (saved(GREY, transparency=int(GREY[2, 3, 0])), np.concatenate([GREY, SEEN], -1)),
        (saved(RGB, pnginfo=PngImagePlugin.PngInfo(), icc_profile=b"profile"), RGB),
        (saved(np.full((H, W, 1), 17, np.uint8), bits=4), np.full((H, W, 1), 17, np.uint8)),
    ],
)
def test_a_picture_becomes_what_it_shows(data, want):
    result = read_png(data, want.shape)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, want)


@pytest.mark.parametrize(
    ("data", "channels", "sentence"),
    [
        (saved(RGB), 1, "a colour image, not grey"),
        (saved(RGBA), 2, "a colour image, not grey and alpha"),
        (saved(RGBA), 3, "a transparent image, not RGB"),
        (saved(RGBA[..., 2:]), 1, "a transparent image, not grey"),
        (indexed(transparency=int(GREY[2, 3, 0])), 3, "a transparent image, not RGB"),
        (saved(RGB), 5, "1 to 4 channels, not 5"),
        (saved(Image.fromarray(GREY[..., 0].astype(np.uint16) * 257)), 1, "16 bits per channel"),
        (saved(RGB[:, :-1]), 3, "an image of 8 x 5, not [8, 6, 3]"),
        (
            saved(Image.fromarray(RGB), save_all=True, append_images=[Image.fromarray(RGB[::-1])]),
            3,
            "an animation of 2 images",
        ),
        *((saved(RGB, kind), 3, f"has {kind} data, but only PNG") for kind in ("JPEG", "GIF", "WebP", "BMP", "TIFF")),
        (b"\0\0\0\x20ftypavif" + bytes(40), 3, "has AVIF or HEIF data, but only PNG"),
        (b"\xff\x0a" + bytes(40), 3, "has JPEG XL data, but only PNG"),
        (RGB.tobytes(), 3, "bytes that are not a PNG, but as many as a frame has"),
    ],
)
def test_what_would_lose_something_is_refused_and_not_called_damaged(data, channels, sentence):
    with pytest.raises(PictureError) as error:
        read_png(data, (H, W, channels))
    assert sentence in str(error.value) and not error.value.damaged


def test_every_damage_is_seen():
    whole = saved(RGB)
    damages = [
        b"",
        whole[:20],
        whole[: len(whole) // 2],
        whole[:-20],
        whole.replace(b"IDAT", b"IDAX"),
        bytes(len(whole)),
    ]
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1  # Pillow alone decodes this to another picture
    for data in [*damages, bytes(flipped)]:
        with pytest.raises(PictureError, match="damaged") as error:
            read_png(data, RGB.shape)
        assert error.value.damaged and "0x" not in str(error.value) and "\n" not in str(error.value)


def with_header(data, width, height):
    header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def test_a_header_that_claims_more_than_memory_holds_is_refused_before_decoding():
    for size in ((10**9, 1), (1, 10**9), (2**31 - 1, 2**31 - 1)):
        with pytest.raises(PictureError, match="an image of"):
            read_png(with_header(saved(RGB), *size), RGB.shape)
    # The right size, and data that unpack to much more: decoding ends with the last row.
    bomb = zlib.compress(bytes(10**7))
    chunks = saved(RGB)[:33]
    for kind, content in ((b"IDAT", bomb), (b"IEND", b"")):
        chunks += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    np.testing.assert_array_equal(read_png(chunks, RGB.shape), np.zeros_like(RGB))
