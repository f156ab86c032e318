"""IDX, the file format of MNIST: a magic number, the sizes as big-endian 32-bit integers, then the bytes.

The magic number is 00 00 TT DD: TT the element type (08 is uint8, the only one read here), DD the number of axes.
Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits".
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

UINT8 = 0x08
GZIP_MAGIC = b"\x1f\x8b"
ELEMENT_TYPES = {0x08: "uint8", 0x09: "int8", 0x0B: "int16", 0x0C: "int32", 0x0D: "float32", 0x0E: "float64"}


def read_idx(path: str | Path, ndim: int | None = None) -> np.ndarray:
    """Reads a whole IDX file of uint8, plain or gzip.

    Gzip is recognised by its first bytes and not by the name: browsers unpack `.gz` files and keep the name.

    Args:
        path: the file.
        ndim: the number of axes to insist on (3 for images, 1 for labels); None takes any.

    Returns:
        uint8 array of the shape in the header.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or something else; the message names it, what it has and what was expected.
    """
    content = unpack(Path(path).read_bytes(), path)
    if len(content) < 4 or content[:2] != b"\0\0":
        raise ValueError(
            f"{path}: not an IDX file: it begins with {_hex(content[:4])}, expected 00 00 08 and the number of axes"
        )
    element, axes = content[2], content[3]
    if element != UINT8:
        found = ELEMENT_TYPES.get(element, "unknown")
        raise ValueError(f"{path}: IDX element type {element:#04x} ({found}), expected {UINT8:#04x} (uint8)")
    if axes < 1 or (ndim is not None and axes != ndim):
        raise ValueError(f"{path}: IDX file with {axes} axes, expected {ndim or 'at least 1'}")
    header = 4 + 4 * axes
    if len(content) < header:
        raise ValueError(f"{path}: truncated IDX header: got {len(content)} bytes, expected {header}")
    shape = struct.unpack(f">{axes}I", content[4:header])
    got, expected = len(content) - header, math.prod(shape)
    if got != expected:
        fault = "truncated" if got < expected else "too long"
        raise ValueError(f"{path}: {fault} IDX file: got {got} bytes of data, expected {expected} for shape {shape}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()  # a copy, as bytes are read-only


def unpack(content: bytes, source: str | Path) -> bytes:
    """The content itself, or what it holds if it is gzip; a damaged gzip is a ValueError that names the source."""
    if not content.startswith(GZIP_MAGIC):
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{source}: corrupt gzip: got {len(content)} bytes that do not unpack ({error}), expected a whole gzip file"
        ) from error


def _hex(content: bytes) -> str:
    return content.hex(" ") or "nothing (it is empty)"
