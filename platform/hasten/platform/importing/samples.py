"""What every kind of source gives: parts that can be read apart from each other, and samples in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from numpy.typing import NDArray

from hasten.platform.importing.decoding import Refused

Format = Literal["imagefolder", "parquet", "webdataset", "arrays", "latents"]
FORMATS: Final[tuple[Format, ...]] = ("imagefolder", "parquet", "webdataset", "arrays", "latents")
Label = int | str | None

IMAGES: Final = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".avif"),
)
MAX_BYTES: Final = 2**28  # of one image file: more is no photograph, and would have to fit in memory
PART_BYTES: Final = 2**24  # of what one task reads, where a source can be divided


@dataclass(frozen=True, slots=True)
class Sample:
    """One image or latent: an image file's bytes, an array (H, W, C) of uint8 or (C, H, W) of floats, or the
    reason why it could not be read. ``name`` is for the report alone and never becomes a file's name.
    """

    name: str
    content: bytes | NDArray[Any] | Refused
    label: Label = None


class Part(Protocol):
    """A piece of a source that one task reads. It holds addresses and no connection."""

    def samples(self) -> Iterator[Sample]:
        """The samples, in an order that is always the same.

        Raises:
            ConfigError: a container (a tar, a Parquet file, an array) is damaged.
            Fault: the storage failed.
        """
        ...


def too_large(size: int) -> Refused:
    return Refused(f"is a file of {size:,} bytes, more than {MAX_BYTES:,}")
