import gzip

import numpy as np
import pytest

from fastdiff.data.idx import read_idx

IMAGES = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("name", ["a", "a.gz"])  # the contents decide, as browsers unpack and keep the name
@pytest.mark.parametrize("array", [IMAGES, IMAGES[0, 0], IMAGES[:0]], ids=["images", "labels", "empty"])
def test_reads_what_was_written(tmp_path, encode_idx, array, name, compress):
    path = tmp_path / name
    path.write_bytes(compress(encode_idx(array)))
    got = read_idx(path, ndim=array.ndim)
    assert got.dtype == np.uint8
    assert got.flags.writeable
    np.testing.assert_array_equal(got, array)


def damaged(encode_idx):
    good = encode_idx(IMAGES)
    packed = gzip.compress(good)
    middle = len(packed) // 2
    return {
        "empty": (b"", r"begins with nothing \(it is empty\), expected 00 00 08"),
        "foreign": (b"<html>", "not an IDX file: it begins with 3c 68 74 6d, expected 00 00 08"),
        "float32": (b"\0\0\x0d\x03" + good[4:], r"element type 0x0d \(float32\), expected 0x08 \(uint8\)"),
        "unknown type": (b"\0\0\x07\x03" + good[4:], r"element type 0x07 \(unknown\), expected 0x08"),
        "wrong axes": (encode_idx(IMAGES[0]), "with 2 axes, expected 3"),
        "no axes": (b"\0\0\x08\0", "with 0 axes, expected 3"),
        "cut in header": (good[:10], "truncated IDX header: got 10 bytes, expected 16"),
        "cut in data": (good[:-1], r"truncated IDX file: got 23 bytes of data, expected 24 for shape \(2, 3, 4\)"),
        "too long": (good + b"\0", "too long IDX file: got 25 bytes of data, expected 24"),
        "huge": (b"\0\0\x08\x03" + b"\xff" * 12, "truncated IDX file: got 0 bytes of data, expected 79228162458924105"),
        "cut gzip": (packed[:-9], "corrupt gzip: got .* bytes that do not unpack .*, expected a whole gzip file"),
        "bad gzip header": (b"\x1f\x8b\xff" + packed[3:], "corrupt gzip"),
        "flipped gzip": (packed[:middle] + bytes([packed[middle] ^ 255]) + packed[middle + 1 :], "corrupt gzip"),
        "garbage after gzip": (packed + b"garbage", "corrupt gzip"),
    }


@pytest.mark.parametrize("case", damaged(lambda array: b"\0" * 16))
def test_damage_is_one_clear_error(tmp_path, encode_idx, case):
    content, message = damaged(encode_idx)[case]
    path = tmp_path / "broken-images"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"broken-images: .*{message}"):
        read_idx(path, ndim=3)
