"""The data sets that fastdiff knows by name, and where their files lie."""

import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from fastdiff.data.datasets import ImageDataset, arrays
from fastdiff.data.download import download as download_file
from fastdiff.data.idx import read_idx
from fastdiff.data.order import split_indices

SPLIT_SEED = 0  # part of what the split names mean: another value would mix test images into old training sets

MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
MNIST_MD5 = {  # of the unpacked contents, so that it holds for any compression
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
MNIST_FOLDERS = (".", "mnist", "MNIST/raw")
MNIST_TRAIN_SHARE = 55 / 60  # 55,000 of the 60,000 train images, 5,000 to validate


def digits(split: str = "train") -> ImageDataset:
    """The 1,797 handwritten digits that come with scikit-learn: 1x8x8, ten classes, no files and no network.

    Args:
        split: "train" (1,438), "validation" (179), "test" (180) or "all". Always the same images, each class in
            proportion.

    Raises:
        ValueError: there is no such split.

    Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998 (its test part).
    """
    _require_split(split, "train", "validation", "test", "all", dataset="digits")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images, labels = bunch.images / 16, torch.from_numpy(bunch.target)
    if split != "all":
        train, validation, test = split_indices((0.8, 0.1, 0.1), len(images), labels, SPLIT_SEED)
        part = {"train": train, "validation": validation, "test": test}[split]
        images, labels = images[part.numpy()], labels[part]
    return arrays(images, labels, layout="NHW", num_classes=10, name=f"digits/{split}")


def mnist(split: str = "train", root: str | Path | None = None, download: bool = False) -> ImageDataset:
    """The MNIST digits: 1x28x28, ten classes, from the four IDX files.

    Args:
        split: "train" (55,000) and "validation" (5,000) are a fixed random cut of the train files, each class in
            proportion; "test" (10,000) is the test files.
        root: the folder that holds the files, plain or `.gz`, itself or in `mnist` or `MNIST/raw`. Default: the
            environment variable FASTDIFF_DATA.
        download: fetch what is missing (11 MB in all) into `root/mnist` and check it. Files that are there already are
            taken as they are.

    Raises:
        FileNotFoundError: a file is missing and download is False, or no folder is given.
        OSError: the download failed.
        ValueError: there is no such split, or a file is damaged.

    Source: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to document recognition", 1998.
    """
    _require_split(split, "train", "validation", "test", dataset="mnist")
    folder = _data_folder(root, "mnist")
    prefix = "t10k" if split == "test" else "train"
    stems = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"
    if download:
        download_mnist(folder, stems)
    image_path, label_path = (_find_mnist(folder, stem) for stem in stems)
    images, labels = read_idx(image_path, ndim=3), torch.from_numpy(read_idx(label_path, ndim=1)).long()
    if len(images) != len(labels):
        raise ValueError(f"{image_path} has {len(images)} images, but {label_path} has {len(labels)} labels")
    if split != "test":
        shares = MNIST_TRAIN_SHARE, 1 - MNIST_TRAIN_SHARE
        train, validation = split_indices(shares, len(images), labels, SPLIT_SEED)
        part = train if split == "train" else validation
        images, labels = images[part.numpy()], labels[part]
    return arrays(images, labels, layout="NHW", num_classes=10, name=f"mnist/{split}")


def download_mnist(
    folder: Path,
    stems: Sequence[str] = tuple(MNIST_MD5),
    mirrors: Sequence[str] | None = None,
    md5: Mapping[str, str] | None = None,
) -> None:
    """Fetches those of the named MNIST files that are not in the folder yet into `folder/mnist`, as `.gz`.

    Raises:
        OSError: no mirror delivered a file intact.
    """
    for stem in stems:
        if not any(path.is_file() for path in _mnist_places(folder, stem)):
            download_file(folder / "mnist" / f"{stem}.gz", mirrors or MNIST_MIRRORS, (md5 or MNIST_MD5)[stem])


# One signature for all: name -> (split, root, download) -> data set.
DATASETS: dict[str, Callable[[str, str | Path | None, bool], ImageDataset]] = {
    "digits": lambda split, root, download: digits(split),
    "mnist": mnist,
}


def load_dataset(name: str, split: str = "train", root: str | Path | None = None, download: bool = False) -> ImageDataset:
    """Loads a data set by name.

    Args:
        name: "digits" or "mnist".
        split: "train", "validation" or "test"; "digits" has "all" too.
        root: the folder with data sets, default FASTDIFF_DATA; "digits" needs none.
        download: fetch missing files; see `mnist`.

    Raises:
        ValueError: the name or the split is unknown; the message proposes the nearest name.
        FileNotFoundError, OSError: see `mnist`.
    """
    if name not in DATASETS:
        nearest = difflib.get_close_matches(str(name), DATASETS, n=1, cutoff=0.5)
        hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
        raise ValueError(f"unknown data set {name!r}{hint}; known: {', '.join(DATASETS)}")
    return DATASETS[name](split, root, download)


def _require_split(split: str, *known: str, dataset: str) -> None:
    if split not in known:
        raise ValueError(f"{dataset} has no split {split!r}; it has {', '.join(known)}")


def _data_folder(root: str | Path | None, dataset: str) -> Path:
    root = root or os.environ.get("FASTDIFF_DATA")
    if not root:
        raise FileNotFoundError(
            f"{dataset}: no folder to look in or to download to: give root=, or set the environment's FASTDIFF_DATA"
        )
    return Path(root).expanduser()


def _mnist_places(folder: Path, stem: str) -> list[Path]:
    spellings = stem, stem.replace("-idx", ".idx")
    names = [spelling + suffix for spelling in spellings for suffix in ("", ".gz")]
    return [folder / sub / name for sub in MNIST_FOLDERS for name in names]


def _find_mnist(folder: Path, stem: str) -> Path:
    for path in _mnist_places(folder, stem):
        if path.is_file():
            return path
    looked = ", ".join(str(folder / sub) for sub in MNIST_FOLDERS)
    raise FileNotFoundError(
        f"mnist: no file {stem}[.gz] in {looked}; give another root= (or FASTDIFF_DATA), "
        "or ask for the download with download=True"
    )
