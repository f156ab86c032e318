import errno
import os

import pytest

from fastdiff.visualization.files import write_atomically


def test_a_full_disk_leaves_the_old_file_and_no_debris(tmp_path, monkeypatch):
    path = write_atomically(tmp_path / "new" / "a.txt", b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write the file \(No space left on device\).*a\.txt"):
        write_atomically(path, b"brand new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in path.parent.iterdir()] == ["a.txt"]


def test_an_open_file_keeps_its_content_when_it_is_written_again(tmp_path):
    path = write_atomically(tmp_path / "a.txt", b"old")
    with path.open("rb") as reader:
        write_atomically(path, b"new")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"
