"""Arrays in files: .npy, .npz and .safetensors, of uint8 images or of floating-point latents."""

from __future__ import annotations

import ast
import json
import math
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from hasten.platform.importing.places import File, Place
from hasten.platform.importing.samples import PART_BYTES, Sample
from hasten.trainers.errors import ConfigError, HastenError

EXTENSIONS: Final = (".npy", ".npz", ".safetensors")
_CONTENT_NAMES: Final = ("images", "image", "latents", "latent", "x", "data", "arr_0", "train_images")
_LABEL_NAMES: Final = ("labels", "label", "y", "targets", "arr_1", "train_labels")
_TORCH: Final = {
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "BF16": "bfloat16",
}
_DTYPES: Final = frozenset(_TORCH.values())
_LONGEST: Final = 2**27  # bytes of a header, and of labels
_CHANNELS: Final = (1, 3, 4)
# What numpy, zipfile and a header of nonsense raise; RuntimeError: an encrypted zip.
_DAMAGES: Final = (
    *(ValueError, EOFError, KeyError, TypeError, AttributeError, SyntaxError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One array: in a file at ``offset``, or in a zip under the name ``member``."""

    place: Place
    file: str
    member: str | None
    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * (2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize)

    def blocks(self, start: int, stop: int) -> Iterator[NDArray[Any]]:
        """Rows ``start`` to ``stop``, some at a time; bfloat16 as float32, which holds it exactly."""
        step = max(1, PART_BYTES // 4 // max(self.row_bytes, 1))
        with _reading(self.place, self.file), self._opened() as stream:
            if self.member is None:
                stream.seek(self.offset + start * self.row_bytes)
            for first in range(start, stop, step):
                rows = min(step, stop - first)
                content = stream.read(rows * self.row_bytes)
                if len(content) != rows * self.row_bytes:
                    raise EOFError("its end is missing")
                yield self._array(content).reshape(rows, *self.shape[1:])

    def whole(self) -> NDArray[Any]:
        """All of it: for labels."""
        found = list(self.blocks(0, self.shape[0]))
        return np.concatenate(found) if found else np.zeros(self.shape, self.dtype)

    @contextmanager
    def _opened(self) -> Iterator[IO[bytes]]:
        with self.place.open(self.file) as file:
            if self.member is None:
                yield file
                return
            with zipfile.ZipFile(file) as archive, archive.open(self.member) as inside:
                _npy_header(inside)
                yield inside

    def _array(self, content: bytes) -> NDArray[Any]:
        if self.dtype == "bfloat16":
            return (np.frombuffer(content, "<u2").astype(np.uint32) << 16).view(np.float32)
        return np.frombuffer(content, self.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Some rows of an array. ``layout`` says which axis has the channels of images; latents have CHW."""

    member: Member
    layout: str
    start: int
    stop: int
    labels: NDArray[np.int64] | None

    def samples(self) -> Iterator[Sample]:
        row = self.start
        name = f"{self.member.file}/{self.member.member}" if self.member.member else self.member.file
        for block in self.member.blocks(self.start, self.stop):
            for image in block:
                if self.layout == "HW":
                    image = image[..., None]
                elif self.layout == "CHW" and image.dtype == np.uint8:
                    image = image.transpose(1, 2, 0)
                label = None if self.labels is None else int(self.labels[row - self.start])
                yield Sample(f"{name}:{row}", image, label)
                row += 1


def parts(
    place: Place, files: Sequence[File], *, labelled: bool, latents: bool | None
) -> tuple[list[Rows], bool, int]:
    """Pieces of all arrays, whether they are latents, and how many rows they have.

    The labels of ``x.npy`` lie in ``x_labels.npy`` beside it, those of an only array in ``labels.npy`` too;
    in an ``.npz`` or ``.safetensors`` file they are another array of the file.

    Raises:
        ConfigError: a file is no array or has none that could be images; images and latents are mixed.
    """
    aside = [file for file in files if file.name.lower().endswith("labels.npy")]
    contents = [file for file in files if file not in aside]
    names = {file.name for file in aside}
    found: list[Rows] = []
    kinds: set[bool] = set()
    for file in contents:
        members = _members(place, file)
        content = _content(place, file, members, latents)
        labels = _labels(place, file, members, content)
        if labelled and labels is None and file.name.endswith(".npy"):
            labels = _labels_aside(place, file, names, only=len(contents) == 1)
        kinds.add(content.dtype != "uint8")
        found += _pieces(content, labels if labelled else None)
    if len(kinds) != 1:
        problem = "has images and latents" if kinds else "has labels and no images"
        raise ConfigError(place.uri, problem, "Import them apart.")
    return found, kinds.pop(), sum(rows.stop - rows.start for rows in found)


def _pieces(content: Member, labels: Member | None) -> Iterator[Rows]:
    count = content.shape[0]
    layout = _layout(content)
    numbers = _checked_labels(labels, count)
    step = count if content.member is not None else max(1, PART_BYTES // max(content.row_bytes, 1))
    for start in range(0, count, max(step, 1)):
        stop = min(start + step, count)
        some = None if numbers is None else numbers[start:stop]
        yield Rows(member=content, layout=layout, start=start, stop=stop, labels=some)


def _members(place: Place, file: File) -> Mapping[str, Member]:
    """The arrays of a file by name; no object is ever unpickled."""
    with _reading(place, file.name), place.open(file.name) as opened:
        if file.name.endswith(".safetensors"):
            return dict(_safetensors(place, file, opened))
        if file.name.endswith(".npz"):
            return dict(_zipped(place, file, opened))
        dtype, shape = _npy_header(opened)
        return {
            "": Member(
                place=place, file=file.name, member=None, offset=opened.tell(), dtype=dtype, shape=shape
            )
        }


def _zipped(place: Place, file: File, opened: IO[bytes]) -> Iterator[tuple[str, Member]]:
    with zipfile.ZipFile(opened) as archive:
        for name in archive.namelist():
            if not name.endswith(".npy"):
                continue
            with archive.open(name) as inside:
                dtype, shape = _npy_header(inside)
            yield (
                name.removesuffix(".npy"),
                Member(place=place, file=file.name, member=name, offset=0, dtype=dtype, shape=shape),
            )


def _safetensors(place: Place, file: File, opened: IO[bytes]) -> Iterator[tuple[str, Member]]:
    length = int.from_bytes(opened.read(8), "little")
    if not 2 <= length <= min(_LONGEST, file.size - 8):
        raise ValueError("its header has no sensible length")
    header = json.loads(opened.read(length))
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape = _TORCH.get(entry["dtype"], entry["dtype"]), tuple(map(int, entry["shape"]))
        begin, end = map(int, entry["data_offsets"])
        member = Member(
            place=place, file=file.name, member=None, offset=8 + length + begin, dtype=dtype, shape=shape
        )
        if dtype in _DTYPES and not (end - begin == member.row_bytes * shape[0] if shape else True):
            raise ValueError(f"{name} has another size than its shape")
        yield name, member


def _npy_header(stream: IO[bytes]) -> tuple[str, tuple[int, ...]]:
    """The type and shape of an array in numpy's format, the stream then being at its numbers."""
    major, _ = np.lib.format.read_magic(stream)
    width = 2 if major == 1 else 4
    length = int.from_bytes(stream.read(width), "little")
    if length > _LONGEST:
        raise ValueError("its header is too long")
    fields = ast.literal_eval(stream.read(length).decode("latin1" if major < 3 else "utf-8"))
    shape, dtype = tuple(map(int, fields["shape"])), np.lib.format.descr_to_dtype(fields["descr"])
    if fields["fortran_order"] and len(shape) > 1:
        raise ValueError("it is in Fortran's order: save numpy.ascontiguousarray of it")
    return (dtype.name if dtype.isnative or dtype.itemsize == 1 else dtype.str), shape


def _content(place: Place, file: File, members: Mapping[str, Member], latents: bool | None) -> Member:
    fitting = {
        name: member
        for name, member in members.items()
        if (member.dtype == "uint8" and len(member.shape) in (3, 4) and latents is not True)
        or (_is_float(member.dtype) and len(member.shape) == 4 and latents is not False)
    }
    named = [name for name in _CONTENT_NAMES if name in fitting]
    if named or len(fitting) == 1:
        return fitting[named[0]] if named else next(iter(fitting.values()))
    has = ", ".join(f"{name} {member.dtype}{list(member.shape)}".strip() for name, member in members.items())
    raise ConfigError(
        f"{place.uri}/{file.name}",
        f"has no array of images or latents, or several (it has {has or 'nothing'})",
        "Images are uint8 of shape (N, H, W), (N, H, W, C) or (N, C, H, W), latents are floats (N, C, H, W), "
        "under the name `images` or `latents` where there are several arrays.",
    )


def _is_float(dtype: str) -> bool:
    return dtype == "bfloat16" or (dtype.lstrip("<>=") in ("float16", "float32", "float64", "f2", "f4", "f8"))


def _layout(content: Member) -> str:
    """Which axes an array has after the first one."""
    if content.dtype != "uint8":
        return "CHW"
    if len(content.shape) == 3:
        return "HW"
    _, first, second, third = content.shape
    possible = [layout for layout, channels in (("HWC", third), ("CHW", first)) if channels in _CHANNELS]
    if len(possible) == 2:  # a small image: square ones are meant
        squares = {"HWC": first == second, "CHW": second == third}
        possible = [layout for layout in possible if squares[layout]]
    if len(possible) != 1:
        raise ConfigError(
            f"{content.place.uri}/{content.file}",
            f"has shape {list(content.shape)}, which does not tell where the channels are",
            "Give (N, H, W, C) or (N, C, H, W) with 1, 3 or 4 channels.",
        )
    return possible[0]


def _labels(place: Place, file: File, members: Mapping[str, Member], content: Member) -> Member | None:
    fitting = {
        name: member
        for name, member in members.items()
        if member is not content and _is_labels(member) and member.shape[0] == content.shape[0]
    }
    named = [name for name in _LABEL_NAMES if name in fitting]
    if named:
        return fitting[named[0]]
    if len(fitting) > 1:
        names = ", ".join(fitting)
        raise ConfigError(
            f"{place.uri}/{file.name}",
            f"has several arrays that could be labels: {names}",
            "Call one `labels`, or import without: --labels none.",
        )
    return next(iter(fitting.values()), None)


def _is_labels(member: Member) -> bool:
    flat = len(member.shape) == 1 or (len(member.shape) == 2 and member.shape[1] == 1)
    return flat and re.fullmatch(r"u?int\d+|[<>][iu]\d", member.dtype) is not None


def _labels_aside(place: Place, file: File, names: set[str], *, only: bool) -> Member | None:
    stem = file.name.removesuffix(".npy")
    folder = file.name.rpartition("/")[0]
    candidates = [f"{stem}_labels.npy", f"{stem}-labels.npy"]
    candidates += [f"{folder}/labels.npy" if folder else "labels.npy"] if only else []
    for name in candidates:
        if name in names:
            return next(iter(_members(place, File(name, 0)).values()))
    return None


def _checked_labels(member: Member | None, count: int) -> NDArray[np.int64] | None:
    if member is None:
        return None
    where = f"{member.place.uri}/{member.file}"
    if not _is_labels(member) or member.shape[0] != count:
        raise ConfigError(
            where,
            f"is {member.dtype}{list(member.shape)}, not {count} whole numbers",
            "Give one label an image.",
        )
    return member.whole().reshape(-1).astype(np.int64)


@contextmanager
def _reading(place: Place, name: str) -> Iterator[None]:
    try:
        yield
    except (HastenError, GeneratorExit):
        raise
    except _DAMAGES as error:
        reason = str(error).partition("\n")[0][:160] or type(error).__name__
        raise ConfigError(
            f"{place.uri}/{name}",
            f"is not an array file, or is damaged ({reason})",
            "Save it anew, or leave it out.",
        ) from None
