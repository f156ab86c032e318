import gzip
import hashlib
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from fastdiff.data import catalogue, get_mnist_dataloader, load_dataset, mnist
from fastdiff.data.catalogue import download_mnist

REAL = os.environ.get("FASTDIFF_DATA")


def which(data):
    """The numbers of the tiny images, from their pixels."""
    return ((data.images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def test_splits(mnist_root):
    train, validation, test = (mnist(split, mnist_root) for split in ("train", "validation", "test"))
    assert [len(part) for part in (train, validation, test)] == [55, 5, 10]
    assert train.img_shape == (4, 3, 1)
    assert sorted(which(train) + which(validation)) == list(range(60))
    assert which(test) == list(range(10))
    for part in (train, validation, test):
        assert [number % 10 for number in which(part)] == part.labels.tolist()  # labels follow their images
    torch.manual_seed(5)
    assert which(mnist("validation", mnist_root)) == which(validation)
    with pytest.raises(ValueError, match="mnist has no split 'all'; it has train, validation, test"):
        mnist("all", mnist_root)


@pytest.mark.parametrize("folder", [".", "mnist", "MNIST/raw"])
@pytest.mark.parametrize("separator", ["-idx", ".idx"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_finds_the_usual_places_and_names(tmp_path, tiny_mnist, folder, separator, suffix):
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    for stem, content in tiny_mnist.items():
        path = tmp_path / folder / (stem.replace("-idx", separator) + suffix)
        path.write_bytes(gzip.compress(content) if suffix else content)
    assert len(mnist("train", tmp_path)) == 55


def test_root_comes_from_the_environment(mnist_root, monkeypatch):
    monkeypatch.setenv("FASTDIFF_DATA", str(mnist_root))
    assert len(load_dataset("mnist", "test")) == 10
    monkeypatch.delenv("FASTDIFF_DATA")
    with pytest.raises(FileNotFoundError, match="give root=, or set the environment's FASTDIFF_DATA"):
        mnist("test")


def test_a_missing_file_is_named_with_the_way_out(mnist_root):
    (mnist_root / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file t10k-labels-idx1-ubyte.* in .*MNIST/raw.* download=True"):
        mnist("test", mnist_root)
    mnist("train", mnist_root)  # needs other files


def test_counts_must_match(mnist_root, encode_idx):
    (mnist_root / "mnist" / "t10k-labels-idx1-ubyte.gz").write_bytes(encode_idx(np.zeros(9, np.uint8)))
    with pytest.raises(ValueError, match=r"t10k-images.* has 10 images, but .*t10k-labels.* has 9 labels"):
        mnist("test", mnist_root)


def test_swapped_files_are_told_apart(mnist_root):
    folder = mnist_root / "mnist"
    (folder / "t10k-labels-idx1-ubyte.gz").replace(folder / "t10k-images-idx3-ubyte.gz")
    with pytest.raises(FileNotFoundError, match="t10k-labels"):
        mnist("test", mnist_root)
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes((folder / "train-labels-idx1-ubyte.gz").read_bytes())
    with pytest.raises(ValueError, match=r"t10k-images.*: IDX file with 1 axes, expected 3"):
        mnist("test", mnist_root)


def test_dataloader(mnist_root):
    loader = get_mnist_dataloader(batch_size=4, train=False, root=mnist_root, drop_last=True)
    batches = list(loader)
    assert len(batches) == 2
    images, labels = batches[0]
    assert (images.shape, images.dtype) == ((4, 1, 4, 3), torch.float32)
    assert labels.tolist() == [0, 1, 2, 3]  # the test split keeps its order
    assert labels.dtype == torch.int64
    shuffled = torch.cat([labels for _, labels in get_mnist_dataloader(root=mnist_root)])
    assert len(shuffled) == 55
    assert not torch.equal(shuffled, mnist("train", mnist_root).labels)


class Mirror:
    """A local web server: `answers` maps a file name to (status, the length it announces, body)."""

    def __init__(self):
        self.answers, self.asked = {}, []
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                name = self.path.lstrip("/")
                mirror.asked.append(name)
                status, length, body = mirror.answers.get(name, (404, 0, b""))
                self.send_response(status)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def serve(self, name, body, status=200, announced=None):
        self.answers[name] = (status, len(body) if announced is None else announced, body)


@pytest.fixture
def mirrors(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    both = Mirror(), Mirror()
    yield both
    for mirror in both:
        mirror.server.shutdown()
        mirror.server.server_close()


@pytest.fixture
def published(monkeypatch, mirrors, tiny_mnist):
    """Both mirrors serve the tiny MNIST, and its checksums are the known ones."""
    for mirror in mirrors:
        for stem, content in tiny_mnist.items():
            mirror.serve(f"{stem}.gz", gzip.compress(content))
    md5 = {stem: hashlib.md5(content).hexdigest() for stem, content in tiny_mnist.items()}
    monkeypatch.setattr(catalogue, "MNIST_MD5", md5)
    monkeypatch.setattr(catalogue, "MNIST_MIRRORS", tuple(mirror.url for mirror in mirrors))
    return mirrors


def test_download_fetches_what_the_split_needs_once(tmp_path, published):
    first, second = published
    assert which(mnist("test", tmp_path, download=True)) == list(range(10))
    assert sorted(path.name for path in (tmp_path / "mnist").iterdir()) == sorted(first.asked)
    assert sorted(first.asked) == ["t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"]
    mnist("test", tmp_path, download=True)
    assert len(first.asked) == 2
    assert second.asked == []


def test_nothing_is_fetched_unasked(tmp_path, published):
    with pytest.raises(FileNotFoundError, match="download=True"):
        mnist("test", tmp_path)
    assert published[0].asked == []


STEM = "t10k-labels-idx1-ubyte"


def spoil(mirror, case, content):
    packed = gzip.compress(content)
    if case == "missing":
        del mirror.answers[f"{STEM}.gz"]
    elif case == "other contents":
        mirror.serve(f"{STEM}.gz", gzip.compress(content + b"x"))
    elif case == "cut connection":
        mirror.serve(f"{STEM}.gz", packed[:20], announced=len(packed))
    elif case == "cut file":
        mirror.serve(f"{STEM}.gz", packed[:20])
    elif case == "server error":
        mirror.serve(f"{STEM}.gz", b"sorry", status=503)


FAULTS = {
    "missing": "HTTP Error 404",
    "other contents": "wrong checksum: got md5 [0-9a-f]{32} .*, expected [0-9a-f]{32}",
    "cut connection": "broken transfer: IncompleteRead",
    "cut file": "corrupt gzip",
    "server error": "HTTP Error 503",
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_bad_mirror_gives_way_to_the_next(tmp_path, published, tiny_mnist, case):
    spoil(published[0], case, tiny_mnist[STEM])
    assert len(mnist("test", tmp_path, download=True)) == 10
    assert published[1].asked == [f"{STEM}.gz"]


@pytest.mark.parametrize("case", FAULTS)
def test_a_failed_download_leaves_nothing_and_says_why(tmp_path, published, tiny_mnist, case):
    for mirror in published:
        spoil(mirror, case, tiny_mnist[STEM])
    with pytest.raises(OSError, match=f"(?s)could not download {STEM}.*{FAULTS[case]}.*{FAULTS[case]}") as caught:
        download_mnist(tmp_path, [STEM])
    assert all(str(caught.value).count(mirror.url) == 1 for mirror in published)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_an_interrupted_save_leaves_nothing(tmp_path, published, monkeypatch):
    def interrupt(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        download_mnist(tmp_path, [STEM])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_mirrors_and_checksums_can_be_given(tmp_path, mirrors):
    mirrors[0].serve("one.gz", b"plain")
    download_mnist(tmp_path, ["one"], [mirrors[0].url], {"one": hashlib.md5(b"plain").hexdigest()})
    assert (tmp_path / "mnist" / "one.gz").read_bytes() == b"plain"


@pytest.mark.skipif(not REAL or not (Path(REAL) / "mnist").is_dir(), reason="FASTDIFF_DATA names no folder with mnist/")
def test_the_real_mnist():
    train, validation, test = (mnist(split, REAL) for split in ("train", "validation", "test"))
    assert [len(part) for part in (train, validation, test)] == [55_000, 5_000, 10_000]
    assert test.img_shape == (28, 28, 1)
    assert test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    both = torch.cat([train.images, validation.images])
    assert ((both.double().mean() + 1) / 2).item() == pytest.approx(0.1307, abs=5e-5)  # the well-known mean
