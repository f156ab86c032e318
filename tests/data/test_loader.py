import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from fastdiff.data import Batches, ImageDataset

IMAGES = torch.linspace(-1, 1, 10).reshape(10, 1, 1, 1).expand(10, 1, 2, 2).contiguous()
LABELS = torch.arange(10)
DATA = ImageDataset(IMAGES, LABELS, num_classes=10)


def order(batches, epoch, start=0):
    return [indices.tolist() for indices, _, _ in batches.epoch(epoch, start)]


def test_images_and_labels_are_those_of_the_indices():
    for indices, images, labels in Batches(DATA, 3, seed=0).epoch(0):
        assert indices.dtype == torch.int64
        assert torch.equal(images, IMAGES[indices])
        assert torch.equal(labels, indices)


def test_order_depends_on_seed_and_epoch_alone():
    first = order(Batches(DATA, 3, seed=7), 2)
    torch.manual_seed(99)
    assert order(Batches(DATA, 3, seed=7), 2) == first
    assert order(Batches(DATA, 3, seed=7), 3) != first
    assert order(Batches(DATA, 3, seed=8), 2) != first
    state = torch.get_rng_state()
    order(Batches(DATA, 3, seed=7), 2)
    assert torch.equal(torch.get_rng_state(), state)  # nor does it move the global state


@pytest.mark.parametrize("drop_last", [True, False])
def test_resume_goes_on_exactly(drop_last):
    batches = Batches(DATA, 3, seed=7, drop_last=drop_last)
    whole = order(batches, 1)
    assert len(whole) == len(batches) == (3 if drop_last else 4)
    for start in range(len(batches) + 1):
        assert order(batches, 1, start) == whole[start:]


def test_an_epoch_has_each_image_at_most_once():
    dropped, kept = order(Batches(DATA, 3, 0), 0), order(Batches(DATA, 3, 0, drop_last=False), 0)
    assert [len(batch) for batch in kept] == [3, 3, 3, 1]
    assert sorted(i for batch in kept for i in batch) == list(range(10))
    assert dropped == kept[:3]


def test_without_shuffling_the_order_is_the_data_sets():
    batches = Batches(DATA, 5, seed=0, shuffle=False)
    assert order(batches, 0) == order(batches, 1) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("batch_size", [10, 11, 1000])
def test_a_small_data_set_is_one_batch(batch_size, drop_last):
    batches = Batches(DATA, batch_size, seed=0, drop_last=drop_last)
    assert len(batches) == 1
    assert sorted(order(batches, 0)[0]) == list(range(10))


@pytest.mark.parametrize(
    ("dataset", "labelled"),
    [
        (TensorDataset(IMAGES, LABELS), True),
        (list(zip(IMAGES.numpy(), LABELS.tolist(), strict=True)), True),
        (TensorDataset(IMAGES), False),
        (list(IMAGES), False),
        (IMAGES.numpy(), False),
        (ImageDataset(IMAGES), False),
        ([(image, None) for image in IMAGES], False),
    ],
    ids=["tensors", "pairs", "one tensor", "images", "array", "unlabelled", "none"],
)
def test_any_map_style_data_set_gives_the_same_batches(dataset, labelled):
    got, expected = Batches(dataset, 4, seed=1).epoch(5), Batches(DATA, 4, seed=1).epoch(5)
    for (indices, images, labels), (indices_, images_, labels_) in zip(got, expected, strict=True):
        assert torch.equal(indices, indices_)
        assert torch.equal(images, images_)
        assert torch.equal(labels, labels_) if labelled else labels is None


def test_refuses():
    with pytest.raises(ValueError, match="dataset is empty"):
        Batches([], 3, seed=0)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        Batches(DATA, 0, seed=0)
    with pytest.raises(ValueError, match=r"seed must lie in 0\.\.2\*\*64-1, got -1"):
        Batches(DATA, 3, seed=-1)
    batches = Batches(DATA, 3, seed=2**64 - 1)
    with pytest.raises(ValueError, match="epoch must lie in"):
        batches.epoch(-1)
    for start in (-1, 4):
        with pytest.raises(ValueError, match=rf"start must lie in 0\.\.3.* got {start}"):
            batches.epoch(0, start)
    with pytest.raises(ValueError, match="got 3 parts"):
        next(Batches([(np.zeros(1),) * 3], 1, seed=0).epoch(0))
