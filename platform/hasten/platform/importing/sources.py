"""What a source is: its format, its parts, and what its first samples say about the rest."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from hasten.platform.importing import arrays, decoding, folders, places, tables, tars
from hasten.platform.importing.decoding import Fit, Refused, Target
from hasten.platform.importing.places import File, Place
from hasten.platform.importing.rows import LatentTarget
from hasten.platform.importing.samples import FORMATS, IMAGES, Format, Part, Sample
from hasten.trainers.errors import ConfigError

_LOOKED_AT: Final = 16  # samples
_ENDINGS: Final[dict[Format, tuple[str, ...]]] = {
    "imagefolder": IMAGES,
    "parquet": (".parquet", ".pq"),
    "webdataset": (".tar", ".tar.gz", ".tgz"),
    "arrays": arrays.EXTENSIONS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """``images`` is how many there are, estimated for tars, and ``bytes`` what they take; ``classes`` are
    names by number, empty where labels are numbers or still to be collected; ``ignored`` counts files that
    are no part of it.
    """

    address: str
    format: Format
    parts: Sequence[Part]
    images: int
    bytes: int
    classes: tuple[str, ...]
    ignored: int


def open_source(source: str, *, format: str = "auto", labels: str = "auto") -> Source:  # noqa: A002
    """List a source and find out what it is; of files no more than their headers are read.

    Args:
        source: a folder, a file or a pattern, or ``s3://BUCKET/PREFIX``.
        format: one of :data:`FORMATS`, or ``auto``.
        labels: ``auto``, ``none``, or the name of a Parquet column.

    Raises:
        ConfigError: there is no source, or it cannot be told what it is.
        Fault: the storage failed.
    """
    wanted = next((known for known in FORMATS if known == format), None)
    if wanted is None and format != "auto":
        raise ConfigError("--format", f"no such format: {format}", f"Formats: auto, {', '.join(FORMATS)}.")
    place, everything = places.find(source)
    kind = _family(source, everything, wanted)
    files = [file for file in everything if file.name.lower().endswith(_ENDINGS[kind])]
    if not files:
        raise ConfigError(source, f"has no files of the format {format}", f"It ends on {_ENDINGS[kind]}.")
    if labels not in ("auto", "none") and kind != "parquet":
        raise ConfigError("--labels", f"{labels!r} would be a column of Parquet", "Give auto or none.")
    parts, is_latents, classes, images = _parts(source, place, files, kind, wanted, labels)
    return Source(
        address=source,
        format="latents" if is_latents else kind,
        parts=parts,
        images=images,
        bytes=sum(file.size for file in files),
        classes=classes,
        ignored=len(everything) - len(files),
    )


def _family(source: str, files: Sequence[File], wanted: Format | None) -> Format:
    """Which reader serves: latents lie in Parquet or in arrays."""
    present = {
        kind: count
        for kind, endings in _ENDINGS.items()
        if (count := sum(file.name.lower().endswith(endings) for file in files))
    }
    if wanted == "latents":
        return "parquet" if "parquet" in present else "arrays"
    if wanted is not None:
        return wanted
    if len(present) == 1:
        return next(iter(present))
    remedy = (
        "Say which with --format."
        if present
        else (
            "Known are folders of images, Parquet, WebDataset tars, .npy, .npz and .safetensors; "
            "unpack other archives first."
        )
    )
    what = ", ".join(f"{count} of {kind}" for kind, count in present.items())
    raise ConfigError(source, f"has files of several formats: {what}" if what else "has no images", remedy)


def _parts(
    source: str,
    place: Place,
    files: list[File],
    kind: Format,
    wanted: Format | None,
    labels: str,
) -> tuple[Sequence[Part], bool, tuple[str, ...], int]:
    labelled = labels != "none"
    latents = None if wanted is None else wanted == "latents"
    match kind:
        case "imagefolder":
            found, classes = folders.parts(source, place, files, labelled=labelled)
            return found, False, classes, len(files)
        case "webdataset":
            shards = [tars.Tar(place, file.name, labelled) for file in files]
            return shards, False, (), _estimate(shards, files)
        case "parquet":
            groups, names, count = tables.parts(source, place, files, labels=labels, latents=latents)
            return groups, any(group.latents for group in groups), names, count
        case _:
            if len(files) == 1 and files[0].name.endswith(".npy"):
                files = files + places.siblings(place, files[0], "labels.npy")
            rows, is_latents, count = arrays.parts(place, files, labelled=labelled, latents=latents)
            return rows, is_latents, (), count


def _estimate(shards: Sequence[Part], files: Sequence[File]) -> int:
    sizes = [len(sample.content) + 1536 for sample in first(shards) if isinstance(sample.content, bytes)]
    return max(1, round(sum(file.size for file in files) / np.mean(sizes))) if sizes else len(files)


def first(parts: Iterable[Part], count: int = _LOOKED_AT) -> list[Sample]:
    """The first samples of a source."""
    chained = itertools.chain.from_iterable(part.samples() for part in parts)
    return list(itertools.islice(chained, count))


def image_target(source: Source, *, resolution: int | None, channels: int | None, fit: Fit) -> Target:
    """What the images become. What is not given is that of the first ones, which the rest must then share.

    Raises:
        ConfigError: the first images tell no size, or are not square.
    """
    if resolution is not None and not 1 <= resolution <= 4096:
        raise ConfigError("--resolution", f"{resolution} is not from 1 to 4096")
    if channels not in (None, 1, 3):
        raise ConfigError("--channels", f"{channels} is neither 1 nor 3")
    seen: list[tuple[int, int, bool]] = []
    if resolution is None or channels is None:
        seen = [size for sample in first(source.parts) if (size := _look(sample)) is not None]
        if not seen:
            raise ConfigError(
                source.address,
                f"of its first {_LOOKED_AT} images none can be read",
                "Is it the right folder?",
            )
    if resolution is None and seen[0][0] != seen[0][1]:
        raise ConfigError(
            source.address, f"its images are {seen[0][0]} x {seen[0][1]}, not square", "Give --resolution."
        )
    grey = channels is None and all(is_grey for *_, is_grey in seen)
    return Target(
        resolution=resolution or seen[0][0],
        channels=channels or (1 if grey else 3),
        fit=fit,
        exact=resolution is None,
        grey=grey,
    )


def latent_target(source: Source) -> LatentTarget:
    """What the latents are, by the first of them.

    Raises:
        ConfigError: there are none, or they are not square.
    """
    for sample in first(source.parts):
        if isinstance(sample.content, np.ndarray) and sample.content.ndim == 3:
            shape = sample.content.shape
            if shape[1] != shape[2]:
                raise ConfigError(source.address, f"its latents are {list(shape)}, not square (C, H, W)")
            return LatentTarget(shape=(shape[0], shape[1], shape[2]), half=sample.content.dtype == np.float16)
    raise ConfigError(source.address, "has no latents", "Give floats of shape (N, C, H, W).")


def _look(sample: Sample) -> tuple[int, int, bool] | None:
    if isinstance(sample.content, np.ndarray):
        height, width, channels = sample.content.shape
        return width, height, channels < 3
    try:
        return None if isinstance(sample.content, Refused) else decoding.look(sample.content)
    except Refused:
        return None
