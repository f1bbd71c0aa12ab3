"""Every odd kind of image file becomes the right pixels or a refusal with a reason, never a crash."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hasten.platform.importing import decoding
from hasten.platform.importing.decoding import Mismatch, Note, Refused, Target

GREY = Target(resolution=8, channels=1)
RGB = Target(resolution=8, channels=3)
RANDOM = np.random.default_rng(0)
PLAIN = RANDOM.integers(0, 256, (8, 8), dtype=np.uint8)
COLOUR = RANDOM.integers(0, 256, (8, 8, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def png(array: np.ndarray) -> bytes:
    return encoded(Image.fromarray(array))


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_an_image_of_the_right_size_keeps_every_bit() -> None:
    pixels, notes = decoding.decode(png(PLAIN), GREY)
    np.testing.assert_array_equal(pixels, PLAIN[None])
    assert notes == Note(0)
    pixels, notes = decoding.decode(png(COLOUR), RGB)
    np.testing.assert_array_equal(pixels, COLOUR.transpose(2, 0, 1))
    assert notes == Note(0)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous


def test_grey_and_colour_become_each_other() -> None:
    pixels, notes = decoding.decode(png(PLAIN), RGB)
    np.testing.assert_array_equal(pixels, np.stack([PLAIN] * 3))
    assert notes == Note.GREY_TO_RGB
    pixels, notes = decoding.decode(png(COLOUR), GREY)
    # ITU-R 601-2, as Pillow has it.
    np.testing.assert_allclose(pixels[0], COLOUR @ np.array([0.299, 0.587, 0.114]), atol=1.0)
    assert notes == Note.RGB_TO_GREY


def test_transparency_is_composited_on_white() -> None:
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:4, :, 3] = 255  # black above, nothing below
    rgba[0, 0] = (255, 0, 0, 128)
    pixels, notes = decoding.decode(png(rgba), RGB)
    assert pixels[:, 1, 0].tolist() == [0, 0, 0]
    assert pixels[:, 6, 0].tolist() == [255, 255, 255]
    assert pixels[:, 0, 0].tolist() == [255, 127, 127]
    assert notes == Note.ALPHA


def test_opaque_alpha_changes_nothing() -> None:
    rgba = np.concatenate([COLOUR, np.full((8, 8, 1), 255, np.uint8)], axis=2)
    np.testing.assert_array_equal(decoding.decode(png(rgba), RGB)[0], COLOUR.transpose(2, 0, 1))
    both = np.stack([PLAIN, np.full_like(PLAIN, 255)], axis=2)
    pixels, notes = decoding.decode(encoded(Image.fromarray(both, "LA")), GREY)
    np.testing.assert_array_equal(pixels[0], PLAIN)
    assert notes == Note.ALPHA


def test_palettes() -> None:
    image = Image.new("P", (8, 8))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([index % 3 for index in range(64)])
    pixels, notes = decoding.decode(encoded(image), RGB)
    assert pixels[:, 0, 0].tolist() == [255, 0, 0]
    assert pixels[:, 0, 2].tolist() == [0, 0, 255]
    assert notes == Note.PALETTE
    pixels, notes = decoding.decode(encoded(image, transparency=0), RGB)
    assert pixels[:, 0, 0].tolist() == [255, 255, 255]
    assert notes == Note.PALETTE | Note.ALPHA


def test_one_bit() -> None:
    pixels, _ = decoding.decode(encoded(Image.fromarray(PLAIN > 127)), GREY)
    np.testing.assert_array_equal(pixels[0], np.where(PLAIN > 127, 255, 0))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_and_not_cut(kind: str) -> None:
    deep = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    deep[0, :3] = (0, 65535, 257 * 100)
    pixels, notes = decoding.decode(encoded(Image.fromarray(deep), kind), GREY)
    np.testing.assert_array_equal(pixels[0], np.round(deep / 257.0))
    assert notes == Note.BITS_16


def test_sixteen_bits_of_the_other_byte_order() -> None:
    deep = (np.arange(64) * 1000).astype(">u2").reshape(8, 8)
    image = Image.frombytes("I;16B", (8, 8), deep.tobytes())
    pixels, _ = decoding.decode(encoded(image, "TIFF"), GREY)
    np.testing.assert_array_equal(pixels[0], np.round(deep / 257.0))


def test_cmyk() -> None:
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # red
    for kind in ("TIFF", "JPEG"):
        pixels, notes = decoding.decode(encoded(image, kind), RGB)
        np.testing.assert_allclose(pixels[:, 4, 4], [255, 0, 0], atol=3)
        assert notes == Note.CMYK


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    """A photograph that was stored turned or mirrored comes out as it was seen."""
    stored = {
        1: PLAIN,
        2: PLAIN[:, ::-1],
        3: PLAIN[::-1, ::-1],
        4: PLAIN[::-1],
        5: PLAIN.T,
        6: np.rot90(PLAIN, 1),
        7: PLAIN[::-1, ::-1].T,
        8: np.rot90(PLAIN, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    pixels, notes = decoding.decode(content, GREY)
    np.testing.assert_array_equal(pixels[0], PLAIN)
    assert notes == (Note.EXIF_TURNED if orientation > 1 else Note(0))


def test_looking_sees_the_turned_size() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decoding.look(encoded(Image.new("RGB", (8, 4)), "JPEG", exif=exif)) == (4, 8, False)
    assert decoding.look(png(PLAIN)) == (8, 8, True)


def test_broken_exif_does_not_cost_the_image() -> None:
    content = encoded(Image.fromarray(PLAIN), exif=b"Exif\0\0II*\0\xff\xff\xff\xff nonsense")
    np.testing.assert_array_equal(decoding.decode(content, GREY)[0][0], PLAIN)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)
    pixels, notes = decoding.decode(content, RGB)
    np.testing.assert_allclose(pixels[:, 4, 4], [255, 0, 0], atol=3)
    assert Note.ANIMATED in notes


def reference_crop(image: Image.Image, size: int) -> np.ndarray:
    """The field's centre crop in numpy where it has a closed form: box halves, then an exact fit."""
    array = np.asarray(image, dtype=np.float64)
    while min(array.shape[:2]) >= 2 * size:
        height, width = (side // 2 * 2 for side in array.shape[:2])
        array = array[:height, :width].reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3))
        array = np.floor(array + 0.5)
    top, left = ((side - size) // 2 for side in array.shape[:2])
    return array[top : top + size, left : left + size]


@pytest.mark.parametrize("shape", [(16, 16), (32, 32), (16, 24), (48, 32)])
def test_halving_is_a_box_and_the_crop_is_central(shape: tuple[int, int]) -> None:
    array = RANDOM.integers(0, 256, shape, dtype=np.uint8)
    pixels, notes = decoding.decode(png(array), GREY)
    # Pillow rounds after each halving in each direction.
    np.testing.assert_allclose(pixels[0], reference_crop(Image.fromarray(array), 8), atol=2.0)
    assert Note.DOWNSCALED in notes
    assert (Note.CROPPED in notes) == (shape[0] != shape[1])


def test_a_crop_without_scaling_cuts_the_centre() -> None:
    array = RANDOM.integers(0, 256, (8, 13), dtype=np.uint8)
    pixels, notes = decoding.decode(png(array), GREY)
    np.testing.assert_array_equal(pixels[0], array[:, 2:10])
    assert notes == Note.CROPPED


def test_padding_keeps_all_of_the_image_on_black() -> None:
    pixels, notes = decoding.decode(
        png(np.full((4, 8), 200, np.uint8)), Target(resolution=8, channels=1, fit="pad")
    )
    assert notes == Note.PADDED
    np.testing.assert_array_equal(pixels[0].max(axis=1), [0, 0, 200, 200, 200, 200, 0, 0])


def test_stretching_fills_the_square() -> None:
    wide = np.repeat(np.array([[0, 255]], np.uint8), 16, axis=1)
    pixels, notes = decoding.decode(png(wide), Target(resolution=8, channels=1, fit="stretch"))
    assert notes == Note.STRETCHED | Note.UPSCALED
    assert pixels[0, :, 0].max() == 0
    assert pixels[0, :, -1].min() == 255


def test_smaller_images_are_enlarged_and_counted() -> None:
    pixels, notes = decoding.decode(png(np.full((2, 2), 77, np.uint8)), GREY)
    np.testing.assert_array_equal(pixels, 77)
    assert notes == Note.UPSCALED


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    """A file of some hundred bytes that claims 3.6 gigapixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    with pytest.raises(Refused, match="pixels"):
        decoding.decode(content, GREY)
    with pytest.raises(Refused, match="pixels"):
        decoding.look(content)


def test_a_needle_that_would_grow_into_a_bomb_is_refused() -> None:
    needle = png(np.zeros((1, 60_000), np.uint8))
    with pytest.raises(Refused, match="elongated"):
        decoding.decode(needle, Target(resolution=64, channels=1))
    pixels, _ = decoding.decode(needle, Target(resolution=64, channels=1, fit="pad"))
    assert pixels.shape == (1, 64, 64)


def test_a_text_chunk_that_unpacks_to_gigabytes_is_refused() -> None:
    text = b"k\0\0" + zlib.compress(bytes(80_000_000))
    content = png(PLAIN)
    with pytest.raises(Refused):
        decoding.decode(content[:33] + chunk(b"zTXt", text) + content[33:], GREY)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_truncated_files_are_refused(kind: str) -> None:
    content = encoded(Image.fromarray(RANDOM.integers(0, 256, (64, 64, 3), dtype=np.uint8)), kind)
    for end in (len(content) // 2, len(content) // 10, 3, 0):
        with pytest.raises(Refused):
            decoding.decode(content[:end], RGB)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
def test_flipped_bytes_never_crash(kind: str) -> None:
    content = bytearray(encoded(Image.fromarray(COLOUR), kind))
    for position in range(0, len(content), max(1, len(content) // 60)):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        with contextlib.suppress(Refused):
            pixels, _ = decoding.decode(bytes(damaged), RGB)
            assert pixels.shape == (3, 8, 8)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", b"<svg/>", b"\0" * 100]
)
def test_what_is_no_image_is_refused(content: bytes) -> None:
    with pytest.raises(Refused, match="not an image"):
        decoding.decode(content, GREY)


def test_floating_point_images_are_refused() -> None:
    with pytest.raises(Refused, match="floating"):
        decoding.decode(encoded(Image.new("F", (8, 8)), "TIFF"), GREY)


def test_what_was_not_asked_for_must_be_like_the_first() -> None:
    with pytest.raises(Mismatch, match="8 x 4, not 8 x 8"):
        decoding.decode(png(PLAIN[:4]), Target(resolution=8, channels=1, exact=True))
    with pytest.raises(Mismatch, match="colours"):
        decoding.decode(png(COLOUR), Target(resolution=8, channels=1, grey=True))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_arrays_are_converted_like_files(channels: int) -> None:
    array = RANDOM.integers(0, 256, (11, 20, channels), dtype=np.uint8)
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
    file = encoded(Image.fromarray(array[..., 0] if channels == 1 else array, mode))
    for target in (GREY, RGB):
        mine, theirs = decoding.convert(array, target), decoding.decode(file, target)
        np.testing.assert_array_equal(mine[0], theirs[0])
        assert mine[1] == theirs[1]
