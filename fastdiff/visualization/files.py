"""Whole files or none: every picture and report is written beside its target and then renamed over it."""

from __future__ import annotations

import io
import os
from pathlib import Path

from PIL import Image


def write_atomically(filepath: str | os.PathLike, data: bytes) -> Path:
    """Writes `data` to `filepath`, creating its parent folders, so that a reader sees the old file or the new one.

    Raises the fitting `OSError`, which names the path, where the folder or the file cannot be written.
    """
    path = Path(filepath)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())  # else a power cut may leave the new name on an empty file
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(error.errno, f"cannot write the file ({error.strerror})", str(path)) from error
    return path


def write_image(image: Image.Image, filepath: str | os.PathLike, **options) -> Path:
    """Writes a picture in the format of the path's suffix; `options` go to Pillow's encoder.

    Raises ValueError for a suffix that Pillow cannot write, OSError as `write_atomically` does.
    """
    suffix = Path(filepath).suffix.lower()
    picture_format = Image.registered_extensions().get(suffix)
    if picture_format not in Image.SAVE:
        raise ValueError(f"filepath {str(filepath)!r} needs the suffix of a picture format, such as .png")
    encoded = io.BytesIO()
    image.save(encoded, format=picture_format, **options)
    return write_atomically(filepath, encoded.getvalue())
