"""One fixed protocol to judge samples against real images, where every figure stands beside what real images reach."""

import numpy as np
import torch

from fastdiff.evaluation.features import check_images, check_labels, pixels, train_classifier
from fastdiff.evaluation.frechet import frechet_distance
from fastdiff.evaluation.neighbours import nearest

COPY_RMS = 1e-6  # per value: below any uint8 step (8e-3), above what float32 rounding does to a stored image


def judge(
    samples: torch.Tensor,
    labels: torch.Tensor | None,
    real: torch.Tensor,
    real_labels: torch.Tensor,
    seed: int = 0,
) -> dict[str, float | int | str | None]:
    """Judges samples: are they spread like real images, do they show their class, are they copies?

    The real images are split into disjoint halves A and B, each class in proportion. A classifier learns A. Every
    figure for the samples has its counterpart for B, taken in the same way: what unseen real images would get.

    No figure says much alone: accuracy is fooled by blur and by one good image repeated, the Frechet distance falls
    with N, and a copy of the training data is best at both.

    Args:
        samples: [N, C, H, W] in [-1, 1].
        labels: int64 [N], the classes asked for; None for samples without a class.
        real: [M, C, H, W] in [-1, 1]; the images that the generator learned from, if copies are to be found.
        real_labels: int64 [M], at least two classes of at least two images each.
        seed: the split and the subsets; the same seed compares two generators on the same real images.

    Returns:
        Plain numbers, ready for JSON:

        - `samples_n`, `real_n`, `seed`
        - `classifier_trained_on_n`; `accuracy_samples` (None without labels) over `accuracy_samples_n` samples and
          `accuracy_real` over `accuracy_real_n` images of B, in [0, 1]
        - `frechet_space`; `frechet_samples_vs_real` (samples, B) and its floor `frechet_real_vs_real` (A, B), squared,
          each between two sets of `frechet_n`, which is the smallest of the samples, A and B
        - `nearest_samples_rms` and `nearest_real_rms`: the median distance of samples and of B to the nearest of the
          `nearest_training_n` images of A, root mean square per value in [-1, 1]. Samples clearly below real are copies
        - `copied_share`: the share of samples that equal one of the real images, in [0, 1]

    Raises:
        TypeError, ValueError: a tensor has the wrong kind, shape or range, or there are too few images.
    """
    from sklearn.model_selection import train_test_split

    check_images(samples, "samples")
    check_images(real, "real")
    check_labels(real_labels, real, "real_labels")
    if labels is not None:
        check_labels(labels, samples, "labels")
    if samples.shape[1:] != real.shape[1:]:
        raise ValueError(f"samples and real must be of one shape, got {tuple(samples.shape[1:])} and {tuple(real.shape[1:])}")
    if len(samples) < 2:
        raise ValueError(f"samples must be at least 2, got {len(samples)}")
    samples, real, real_labels = samples.detach().cpu(), real.detach().cpu(), real_labels.cpu()
    classes, sizes = real_labels.unique(return_counts=True)
    if len(classes) < 2 or int(sizes.min()) < 2:
        raise ValueError(f"real must have at least 2 classes of at least 2 images, got classes of {sizes.tolist()}")

    in_a, in_b = train_test_split(np.arange(len(real)), test_size=0.5, stratify=real_labels.numpy(), random_state=seed)
    a, b, a_labels, b_labels = real[in_a], real[in_b], real_labels[in_a], real_labels[in_b]
    classifier = train_classifier(a, a_labels, seed)

    n = min(len(samples), len(a), len(b))
    rng = np.random.default_rng(seed)
    some_samples, some_a, some_b = (pixels(images[rng.permutation(len(images))[:n]]) for images in (samples, a, b))

    to_a, to_b = nearest(samples, a)[1], nearest(samples, b)[1]
    return {
        "samples_n": len(samples),
        "real_n": len(real),
        "seed": seed,
        "classifier_trained_on_n": classifier.trained_on,
        "accuracy_samples": None if labels is None else classifier.accuracy(samples, labels),
        "accuracy_samples_n": 0 if labels is None else len(samples),
        "accuracy_real": classifier.accuracy(b, b_labels),
        "accuracy_real_n": len(b),
        "frechet_space": "pixels",
        "frechet_n": n,
        "frechet_samples_vs_real": frechet_distance(some_samples, some_b),
        "frechet_real_vs_real": frechet_distance(some_a, some_b),
        "nearest_samples_rms": float(to_a.median()),
        "nearest_real_rms": float(nearest(b, a)[1].median()),
        "nearest_training_n": len(a),
        "copied_share": float((torch.minimum(to_a, to_b) < COPY_RMS).double().mean()),
    }
