"""Images as MLflow's image grid wants them: a PNG and a thumbnail under names that say key and step.

``MlflowClient.log_image`` writes the same two files under a random name, so that sending an image again
after an outage would show it twice. Here the name follows from run, key and step, and the same image
again replaces itself.
"""

from __future__ import annotations

import io
import uuid
from typing import Final

from PIL import Image

THUMBNAIL_SIZE: Final = 256


def files(png: bytes, *, run_id: str, key: str, step: int, time: int) -> dict[str, bytes]:
    """Artifact paths and contents; ``time`` in milliseconds since 1970 must be the same every time."""
    name = uuid.uuid5(uuid.NAMESPACE_URL, f"{run_id}/{key}/{step}")
    stem = f"images/{key.replace('/', '~')}+step+{step}+timestamp+{time}+{name}"
    return {f"{stem}.png": png, f"{stem}+compressed.webp": _thumbnail(png)}


def encode(image: Image.Image, *, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, lossless=True)
    return buffer.getvalue()


def _thumbnail(png: bytes) -> bytes:
    """At most 256 pixels wide and high, and never blown up: eight-pixel digits would only blur."""
    with Image.open(io.BytesIO(png)) as image:
        small = image.convert("RGB")
        small.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
        return encode(small, kind="WEBP")
