import hashlib

import numpy as np
import pytest
import torch

from fastdiff.data import ImageDataset, arrays, digits, load_dataset


def images(n=4, c=1, h=3, w=2):
    return torch.linspace(-1, 1, n * c * h * w).reshape(n, c, h, w)


def test_items_batches_and_shape():
    data = ImageDataset(images(c=3), torch.tensor([0, 1, 2, 1]), num_classes=3, name="toy")
    assert len(data) == 4
    assert data.img_shape == (3, 2, 3)  # H, W, C
    image, label = data[2]
    assert torch.equal(image, images(c=3)[2])
    assert label == 2
    got, labels = data.batch(torch.tensor([3, 0]))
    assert torch.equal(got, images(c=3)[[3, 0]])
    assert labels.tolist() == [1, 0]
    assert repr(data) == "ImageDataset('toy', 4 images 3x3x2, 3 classes)"


def test_without_labels():
    data = ImageDataset(images())
    assert data[0][1] is None
    assert data.batch(torch.tensor([0, 1]))[1] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(0, 1, 3, 2)}, "x: the data set is empty"),
        ({"images": torch.zeros(4, 3, 2)}, r"must be \[N, C, H, W\], got shape \(4, 3, 2\)"),
        ({"images": images().double()}, "must be float32, got torch.float64"),
        ({"images": images() * 2}, r"lie in \[-1, 1\], got \[-2, 2\]"),
        ({"images": images().index_fill(0, torch.tensor(2), torch.nan)}, "finite, found NaN or infinity"),
        ({"images": images().index_fill(0, torch.tensor(2), torch.inf)}, "finite, found NaN or infinity"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"one for each of 4 images, got shape \(3,\)"),
        ({"labels": torch.zeros(4, 1, dtype=torch.int64)}, r"got shape \(4, 1\)"),
        ({"labels": torch.zeros(4)}, "labels must be int64, got torch.float32"),
        ({"labels": torch.tensor([0, 1, 2, 3])}, r"lie in 0\.\.2, got 0\.\.3"),
        ({"labels": torch.tensor([0, 1, -1, 2])}, r"lie in 0\.\.2, got -1\.\.2"),
        ({"num_classes": None}, "labels need num_classes"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
    ],
)
def test_refuses(change, message):
    good = {"images": images(), "labels": torch.tensor([0, 1, 2, 0]), "num_classes": 3, "name": "x"}
    ImageDataset(**good)
    with pytest.raises(ValueError, match=message):
        ImageDataset(**{**good, **change})


def test_split_keeps_pairs_together():
    data = ImageDataset(images(n=20), torch.arange(20) % 2, num_classes=2, name="toy")
    parts = data.split(0.8, 0.2, seed=3)
    assert [len(part) for part in parts] == [16, 4]
    assert [part.labels.sum().item() for part in parts] == [8, 2]
    for part in parts:
        for image, label in part:
            source = next(i for i in range(20) if torch.equal(data.images[i], image))
            assert label == source % 2
    assert not torch.equal(parts[0].images, data.split(0.8, 0.2, seed=4)[0].images)
    with pytest.raises(ValueError, match=r"part 1 of the split \(fraction 0.01 of 20\) is empty"):
        data.split(0.99, 0.01)


@pytest.mark.parametrize("container", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
def test_arrays_agree_over_layouts_and_dtypes(container):
    nchw = np.arange(2 * 3 * 5 * 6, dtype=np.uint8).reshape(2, 3, 5, 6)
    nhwc = nchw.transpose(0, 2, 3, 1)
    expected = torch.from_numpy(nchw).double() / 127.5 - 1
    for given in (nchw, nhwc, nchw / 255, nhwc.astype(np.float32) / 255):
        data = arrays(container(given), [1, 0])
        torch.testing.assert_close(data.images.double(), expected, atol=1e-6, rtol=0)
        assert data.images.is_contiguous()
        assert data.num_classes == 2
    ends = arrays(container(np.array([[[0, 255]]], np.uint8)))
    assert ends.images.flatten().tolist() == [-1, 1]  # exactly, or ImageDataset would refuse what arrays made


def test_arrays_takes_grey_flipped_and_read_only_images():
    grey = np.arange(2 * 5 * 6, dtype=np.uint8).reshape(2, 5, 6)
    grey.setflags(write=False)
    data = arrays(grey[:, :, ::-1])
    assert data.img_shape == (5, 6, 1)
    assert data.images[0, 0, 0, 0] == torch.tensor(5.0) / 255 * 2 - 1


def test_arrays_shares_no_memory():
    pixels, labels = torch.zeros(2, 1, 5, 6), torch.tensor([0, 1])
    data = arrays(pixels, labels)
    pixels.fill_(1)
    labels.fill_(1)
    assert data.images.max() == -1
    assert data.labels.tolist() == [0, 1]


def test_arrays_asks_for_an_ambiguous_layout():
    both, neither = np.zeros((2, 3, 8, 3), np.uint8), np.zeros((2, 8, 8, 8), np.uint8)
    for images_, word in ((both, "both could"), (neither, "neither can")):
        with pytest.raises(ValueError, match=f"ambiguous: of axes 1 and 3, {word}.* give layout='NCHW'"):
            arrays(images_)
    assert arrays(both, layout="NCHW").img_shape == (8, 3, 3)
    assert arrays(both, layout="NHWC").img_shape == (3, 8, 3)
    with pytest.raises(ValueError, match=r"layout 'NHW' does not fit shape \(2, 3, 8, 3\)"):
        arrays(both, layout="NHW")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.full((2, 1, 5, 6), 255.0), r"lie in \[0, 1\], got \[255, 255\]"),
        (np.full((2, 1, 5, 6), -1.0), r"lie in \[0, 1\], got \[-1, -1\]"),
        (np.full((2, 1, 5, 6), np.nan), r"lie in \[0, 1\], got \[nan, nan\]"),
        (np.zeros((2, 1, 5, 6), np.int64), "uint8 .* or floating-point .* got torch.int64"),
        (np.zeros((2, 5)), r"3 or 4 axes, got shape \(2, 5\)"),
        (np.zeros((0, 1, 5, 6)), "empty"),
    ],
)
def test_arrays_refuses(given, message):
    with pytest.raises(ValueError, match=message):
        arrays(given)


def test_arrays_refuses_labels_that_are_no_classes():
    with pytest.raises(ValueError, match=r"labels must be integers, got torch\.float64"):
        arrays(np.zeros((2, 1, 5, 6)), np.array([0.0, 1.0]))
    with pytest.raises(ValueError, match=r"lie in 0\.\.0, got -2\.\.-1"):
        arrays(np.zeros((2, 1, 5, 6)), [-1, -2])
    with pytest.raises(TypeError, match="NumPy array or a tensor, got list"):
        arrays([[0.0]])


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    data = digits("all")
    assert (len(data), data.img_shape, data.num_classes) == (1797, (8, 8, 1), 10)
    np.testing.assert_allclose(data.images[:, 0].numpy(), load_digits().images / 8 - 1, atol=1e-6)
    assert data.labels.tolist() == load_digits().target.tolist()


def test_digits_splits_are_fixed_disjoint_and_stratified():
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - the global state must not matter
    parts = [digits(split) for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [1438, 179, 180]
    torch.manual_seed(2)
    assert torch.equal(digits("test").images, parts[2].images)
    assert parts[2].labels.bincount().tolist() == [18] * 10
    whole = sorted(digits("all").images.flatten(1).tolist())
    assert sorted(torch.cat([part.images for part in parts]).flatten(1).tolist()) == whole


def test_digits_test_split_never_changes():
    """Golden: models trained on an earlier release must not have seen today's test images."""
    grey = ((digits("test").images + 1) * 8).round().byte()  # 0..16, as scikit-learn has them
    assert hashlib.md5(grey.numpy().tobytes()).hexdigest() == "2f71590b911deef7d598fde81d00311c"


def test_load_dataset_by_name():
    assert torch.equal(load_dataset("digits", "validation").images, digits("validation").images)
    with pytest.raises(ValueError, match=r"unknown data set 'minst' \(did you mean 'mnist'\?\); known: digits, mnist"):
        load_dataset("minst", "train")
    with pytest.raises(ValueError, match="unknown data set 'qqq'; known: digits, mnist"):
        load_dataset("qqq", "train")
    with pytest.raises(ValueError, match="digits has no split 'dev'; it has train, validation, test, all"):
        load_dataset("digits", "dev")
