import pytest
import torch
from sklearn.datasets import load_digits

from fastdiff.evaluation import features, pixels, train_classifier


@pytest.fixture(scope="module")
def digits():
    bunch = load_digits()
    return torch.from_numpy(bunch.images).float()[:, None] / 8 - 1, torch.from_numpy(bunch.target)


def test_pixels_are_the_values_in_order():
    images = torch.linspace(-1, 1, 24).reshape(2, 3, 2, 2)
    assert pixels(images).tolist() == images.double().reshape(2, 12).tolist()


def test_half_of_the_digits_teach_the_other_half(digits):
    images, labels = digits
    classifier = train_classifier(images[::2], labels[::2])
    assert classifier.accuracy(images[1::2], labels[1::2]) > 0.98
    assert classifier.trained_on == 899
    predicted = classifier.predict(images[1::2])
    assert (predicted.dtype, predicted.shape) == (torch.int64, (898,))
    wrong = (labels[1::2] + 1) % 10
    assert classifier.accuracy(images[1::2], wrong) < 0.02
    with pytest.raises(ValueError, match=r"images must be \[N, 1, 8, 8\], got \(5, 1, 8, 4\)"):
        classifier.predict(images[:5, :, :, :4])


def test_seed_chooses_among_too_many_images(digits, monkeypatch):
    monkeypatch.setattr(features, "CLASSIFIER_IMAGES", 100)
    images, labels = digits
    first, same, other = (train_classifier(images, labels, seed) for seed in (0, 0, 1))
    assert first.trained_on == 100
    assert torch.equal(first.predict(images), same.predict(images))
    assert not torch.equal(first.predict(images), other.predict(images))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), "floating-point in .* got torch.uint8"),
        (torch.zeros(2, 4, 4), r"\[N, C, H, W\] and not empty, got shape \(2, 4, 4\)"),
        (torch.zeros(0, 1, 4, 4), "not empty"),
        (torch.full((2, 1, 4, 4), torch.nan), "finite"),
        (torch.full((2, 1, 4, 4), 1.1), r"lie in \[-1, 1\], got \[1.1, 1.1\]; clamp"),
    ],
)
def test_images_are_checked(images, message):
    with pytest.raises(ValueError, match=message):
        pixels(images)


def test_labels_are_checked():
    images = torch.zeros(3, 1, 4, 4)
    with pytest.raises(ValueError, match=r"one for each of 3 images, got torch.int64 of shape \(2,\)"):
        train_classifier(images, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"integers .* got torch\.float32"):
        train_classifier(images, torch.zeros(3))
    with pytest.raises(ValueError, match="at least two classes, got only 4"):
        train_classifier(images, torch.tensor([4, 4, 4]))
    with pytest.raises(TypeError, match="images must be a tensor, got list"):
        pixels([0.0])
