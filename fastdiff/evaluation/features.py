"""Feature spaces with names, and a small classifier that tells whether a sample shows the class it was asked for."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

CLASSIFIER_IMAGES = 10_000  # a support vector machine trains in quadratic time: seconds for 10,000 images of 28x28
RANGE_SLACK = 1e-3  # rounding of low-precision samples, not a sampler that overshoots


def pixels(images: torch.Tensor) -> np.ndarray:
    """The feature space "pixels": float64 [N, C*H*W], the values of images [N, C, H, W] in [-1, 1] as they are.

    Raises:
        TypeError, ValueError: see `check_images`.
    """
    check_images(images)
    return images.detach().cpu().flatten(1).double().numpy()


@dataclass(frozen=True)
class ImageClassifier:
    """A trained classifier of small images; made by `train_classifier`.

    Attributes:
        pipeline: a scikit-learn estimator on rows of pixels.
        image_shape: (C, H, W), the one shape that it takes.
        trained_on: the number of images that it learned.
    """

    pipeline: Any
    image_shape: tuple[int, int, int]
    trained_on: int

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """The labels, int64 [N], of images [N, C, H, W] in [-1, 1].

        Raises:
            ValueError: the images have another shape than those it was trained on; and see `check_images`.
        """
        check_images(images)
        if tuple(images.shape[1:]) != self.image_shape:
            raise ValueError(f"images must be [N, {', '.join(map(str, self.image_shape))}], got {tuple(images.shape)}")
        return torch.from_numpy(self.pipeline.predict(pixels(images))).long()

    def accuracy(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        """The share of images [N, C, H, W] whose label [N] is predicted, in [0, 1].

        Raises:
            ValueError: see `predict` and `check_labels`.
        """
        check_labels(labels, images)
        return float((self.predict(images) == labels.cpu()).double().mean())


def train_classifier(images: torch.Tensor, labels: torch.Tensor, seed: int = 0) -> ImageClassifier:
    """Trains a support vector machine with a Gaussian kernel on pixels.

    Trained on half of the 8x8 digits it names 98 to 99 % of the other half.

    Args:
        images: [N, C, H, W] in [-1, 1].
        labels: int64 [N], at least two classes.
        seed: chooses CLASSIFIER_IMAGES of the images where there are more; the training itself draws nothing.

    Raises:
        ValueError: there is one class only; and see `check_images` and `check_labels`.
    """
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import SVC

    check_images(images)
    check_labels(labels, images)
    if len(labels.unique()) < 2:
        raise ValueError(f"labels must have at least two classes, got only {int(labels[0])}")
    rows = np.random.default_rng(seed).permutation(len(images))[:CLASSIFIER_IMAGES]
    pipeline = make_pipeline(SVC(kernel="rbf", C=10.0, gamma="scale"))
    pipeline.fit(pixels(images)[rows], labels.cpu().numpy()[rows])
    return ImageClassifier(pipeline, tuple(images.shape[1:]), len(rows))


def check_images(images: torch.Tensor, name: str = "images") -> None:
    """Raises TypeError or ValueError, with the name, for all but finite floats [N, C, H, W] in [-1, 1], N >= 1."""
    if not isinstance(images, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(images).__name__}")
    if not images.is_floating_point():
        raise ValueError(f"{name} must be floating-point in [-1, 1], got {images.dtype}")
    if images.ndim != 4 or not images.numel():
        raise ValueError(f"{name} must be [N, C, H, W] and not empty, got shape {tuple(images.shape)}")
    low, high = (float(bound) for bound in images.detach().aminmax())
    if not np.isfinite([low, high]).all():
        raise ValueError(f"{name} must be finite, found NaN or infinity")
    if low < -1 - RANGE_SLACK or high > 1 + RANGE_SLACK:
        raise ValueError(f"{name} must lie in [-1, 1], got [{low:g}, {high:g}]; clamp samples that overshoot")


def check_labels(labels: torch.Tensor, images: torch.Tensor, name: str = "labels") -> None:
    """Raises TypeError or ValueError, with the name, for all but an integer tensor [N], one for each image."""
    if not isinstance(labels, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(labels).__name__}")
    if labels.is_floating_point() or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{name} must be integers [N], one for each of {len(images)} images, "
            f"got {labels.dtype} of shape {tuple(labels.shape)}"
        )
