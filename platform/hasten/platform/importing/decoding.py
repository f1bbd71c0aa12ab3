"""One encoded image into pixels of the size and channels that a data set has.

Sizes follow the field (guided-diffusion, DiT, EDM's ``center-crop-dhariwal``): halve with a box filter while
at least twice as large, then one antialiased bicubic step, then cut the centre. An image that has the wanted
size already keeps every bit. ``pad`` puts the whole image on black.

Of what image files may be: transparency is composited on white; 16 bits become 8 by v * 255 / 65535 (colour
with 16 bits by its high byte, Pillow's way); an EXIF orientation is applied; an animation gives its first
frame; colour profiles are ignored, as the field does.
"""

from __future__ import annotations

import enum
import functools
import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

Fit = Literal["crop", "pad", "stretch"]
Pixels = NDArray[np.uint8]

MAX_PIXELS: Final = 89_478_485  # a quarter of a gigabyte in RGB, as Pillow's own warning has it
# Formats that Pillow reads by itself: EPS would start Ghostscript on what somebody sent us.
_FORMATS: Final = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
_GREY: Final = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N")
_ALPHA: Final = ("RGBA", "RGBa", "LA", "La", "PA")
_ORIENTATION: Final = 0x0112


class Note(enum.IntFlag):
    """What was done to an image; the names are those of the report."""

    ANIMATED = 1
    PALETTE = 2
    ALPHA = 4
    BITS_16 = 8
    CMYK = 16
    EXIF_TURNED = 32
    GREY_TO_RGB = 64
    RGB_TO_GREY = 128
    DOWNSCALED = 256
    UPSCALED = 512
    CROPPED = 1024
    PADDED = 2048
    STRETCHED = 4096
    FLOAT64_TO_32 = 8192
    BFLOAT16_TO_32 = 16384


class Refused(Exception):
    """An image that is left out; its text is the reason in the report."""


class Mismatch(Refused):
    """An image that contradicts what was derived from the first ones: the user decides, by ``option``."""

    def __init__(self, reason: str, option: str) -> None:
        super().__init__(reason, option)
        self.reason, self.option = reason, option


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What every image becomes: uint8 (channels, resolution, resolution).

    ``exact``: no resolution was asked for, so an image of another size is a :class:`Mismatch`; ``grey``: no
    channels were, so a coloured one is.
    """

    resolution: int
    channels: int
    fit: Fit = "crop"
    exact: bool = False
    grey: bool = False


def decode(content: bytes, target: Target) -> tuple[Pixels, Note]:
    """Pixels uint8 (C, H, W) of an image file, and what was done to it.

    Raises:
        Refused: it is damaged, too large, or of a kind that is not supported.
        Mismatch: it is not like the first ones.
    """
    with _refusing(), _open(content) as image:
        image.load()
        notes = Note.ANIMATED if _moves(image) else Note(0)
        upright = _upright(image)
        if upright is not image:
            notes |= Note.EXIF_TURNED
        plain, done = _plain(upright)
        return _shaped(plain, target, notes | done)


def convert(pixels: Pixels, target: Target) -> tuple[Pixels, Note]:
    """The same for pixels of shape (H, W, C) with 1 to 4 channels: grey, grey and alpha, RGB, RGBA.

    Raises:
        Refused, Mismatch: as for :func:`decode`.
    """
    height, width, channels = pixels.shape
    if (channels, height, width) == (target.channels, target.resolution, target.resolution):
        return np.ascontiguousarray(pixels.transpose(2, 0, 1)), Note(0)
    with _refusing():
        _check_size(width, height)
        flat = pixels[..., 0] if channels == 1 else pixels
        mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
        image = Image.frombuffer(
            mode, (width, height), np.ascontiguousarray(flat).tobytes(), "raw", mode, 0, 1
        )
        plain, notes = _plain(image)
        return _shaped(plain, target, notes)


def look(content: bytes) -> tuple[int, int, bool]:
    """Width, height (as shown: EXIF applied) and whether it is grey, from an image file's header.

    Raises:
        Refused: it is not an image.
    """
    with _refusing(), _open(content) as image:
        width, height = image.size
        if _orientation(image) >= 5:
            width, height = height, width
        return width, height, image.mode in _GREY


@contextmanager
def _refusing() -> Iterator[None]:
    """Whatever an image library makes of a damaged file is a refusal: it is bytes that somebody sent."""
    try:
        yield
    except Refused:
        raise
    except Exception as error:
        raise Refused(_why(error)) from None


def _why(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "is not an image of a kind that is read"
    if isinstance(error, Image.DecompressionBombError):
        return f"has more than {MAX_PIXELS:,} pixels"
    if isinstance(error, MemoryError):
        return "needs more memory than there is"
    lines = str(error).strip().splitlines()
    if isinstance(error, struct.error | SyntaxError | IndexError | KeyError | TypeError) or not lines:
        return f"is damaged ({type(error).__name__})"
    return f"is damaged ({lines[0][:120]})"


def _open(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content), formats=_known_formats())
    _check_size(*image.size)
    return image


@functools.cache
def _known_formats() -> tuple[str, ...]:
    Image.init()  # or Pillow would not find those that it has not met yet
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _check_size(width: int, height: int) -> None:
    """Before anything is decoded: a file of a few kilobytes can claim gigabytes of pixels."""
    if width * height > MAX_PIXELS:
        raise Refused(f"has {width} x {height} pixels, more than {MAX_PIXELS:,}")
    if not width or not height:
        raise Refused("has no pixels")


def _moves(image: Image.Image) -> bool:
    # MPO is a photograph with a preview or a depth map behind it.
    return image.format != "MPO" and bool(getattr(image, "is_animated", False))


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # EXIF is often broken where the image is not
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _upright(image: Image.Image) -> Image.Image:
    if _orientation(image) == 1:
        return image
    turned = ImageOps.exif_transpose(image)
    return image if turned is None else turned


def _plain(image: Image.Image) -> tuple[Image.Image, Note]:
    """The image as L or RGB."""
    notes, mode = Note(0), image.mode
    if mode in ("P", "PA"):
        notes |= Note.PALETTE
    if mode in _ALPHA or "transparency" in image.info:
        grey = mode in _GREY
        coloured = image.convert("RGBA")
        white = Image.new("RGBA", coloured.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, coloured).convert("L" if grey else "RGB"), notes | Note.ALPHA
    if mode.startswith("I"):
        return _eight_bits(image), notes | Note.BITS_16
    if mode == "F":
        raise Refused("has floating-point pixels, whose range nobody knows")
    if mode == "CMYK":
        notes |= Note.CMYK
    wanted = "L" if mode in _GREY else "RGB"
    return image if mode == wanted else image.convert(wanted), notes


def _eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise Refused("has pixels of more than 16 bits, whose range nobody knows")
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


def _shaped(image: Image.Image, target: Target, notes: Note) -> tuple[Pixels, Note]:
    """An L or RGB image as the target wants it."""
    size = target.resolution
    if target.exact and image.size != (size, size):
        reason = f"is {image.width} x {image.height}, not {size} x {size} as the first one"
        raise Mismatch(reason, "--resolution")
    if target.grey and image.mode == "RGB":
        raise Mismatch("has colours, the first ones do not", "--channels")
    if target.channels == 1 and image.mode == "RGB":
        image, notes = image.convert("L"), notes | Note.RGB_TO_GREY
    elif target.channels == 3 and image.mode == "L":
        image, notes = image.convert("RGB"), notes | Note.GREY_TO_RGB
    if image.size != (size, size):
        image, done = _fitted(image, target)
        notes |= done
    pixels = np.asarray(image)
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return np.ascontiguousarray(pixels), notes


def _fitted(image: Image.Image, target: Target) -> tuple[Image.Image, Note]:
    size, (width, height) = target.resolution, image.size
    notes = Note.STRETCHED if target.fit == "stretch" and width != height else Note(0)
    whole = _scaled(width, height, target)
    if whole[0] * whole[1] > MAX_PIXELS:
        raise Refused(f"is too elongated ({width} x {height})")
    if whole[0] > width or whole[1] > height:
        notes |= Note.UPSCALED
    elif whole != (width, height):
        notes |= Note.DOWNSCALED
    measure = max if target.fit == "pad" else min
    while measure(image.size) >= 2 * size and min(image.size) >= 2:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    whole = _scaled(*image.size, target)
    if image.size != whole:
        image = image.resize(whole, Image.Resampling.BICUBIC)
    if whole == (size, size):
        return image, notes
    left, top = (whole[0] - size) // 2, (whole[1] - size) // 2
    if target.fit == "pad":
        square = Image.new(image.mode, (size, size))
        square.paste(image, (-left, -top))
        return square, notes | Note.PADDED
    return image.crop((left, top, left + size, top + size)), notes | Note.CROPPED


def _scaled(width: int, height: int, target: Target) -> tuple[int, int]:
    """The size of the whole image before it is cut or padded."""
    size = target.resolution
    match target.fit:
        case "crop":
            scale = size / min(width, height)
        case "pad":
            scale = size / max(width, height)
        case "stretch":
            return size, size
    return max(1, round(width * scale)), max(1, round(height * scale))
