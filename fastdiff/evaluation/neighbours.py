"""The nearest training images of samples: a generator that copies its training data shows up here and nowhere else.

Distances come in two steps. `|x|^2 + |y|^2 - 2 x.y` is one matrix product and ranks the images, but it cancels: a
copy would be at 1e-8 or so. The few that win are then measured by their difference, so a copy is at exactly 0.
"""

import torch

from fastdiff.evaluation.features import check_images

SAMPLES_AT_ONCE = 1024
TRAINING_AT_ONCE = 8192  # with the above: 64 MiB of distances


def nearest(samples: torch.Tensor, training: torch.Tensor, k: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """The k nearest training images of each sample, nearest first.

    Args:
        samples: [N, C, H, W] in [-1, 1].
        training: [M, C, H, W] in [-1, 1].
        k: 1 .. M.

    Returns:
        indices int64 [N, k] into training, and distances float64 [N, k]: root mean square of the difference per value,
        0 for a copy, 2 between black and white. Both on the CPU.

    Raises:
        ValueError: the shapes differ or k is out of range; and see `check_images`.
    """
    check_images(samples, "samples")
    check_images(training, "training")
    if samples.shape[1:] != training.shape[1:]:
        raise ValueError(
            f"samples and training must be of one shape, got {tuple(samples.shape[1:])} and {tuple(training.shape[1:])}"
        )
    if not 1 <= k <= len(training):
        raise ValueError(f"k must lie in 1..{len(training)}, the number of training images, got {k}")
    rows = training.detach().cpu().flatten(1)
    found = [_nearest(part.double(), rows, k) for part in samples.detach().cpu().flatten(1).split(SAMPLES_AT_ONCE)]
    indices, distances = zip(*found, strict=True)
    return torch.cat(indices), torch.cat(distances)


def _nearest(samples: torch.Tensor, training: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    best = torch.empty(len(samples), 0, dtype=torch.float64)
    indices = torch.empty(len(samples), 0, dtype=torch.int64)
    for start in range(0, len(training), TRAINING_AT_ONCE):
        part = training[start : start + TRAINING_AT_ONCE].double()
        squared = (part * part).sum(1) - 2 * samples @ part.T  # |sample|^2 is the same for all, so it ranks nothing
        near, at = squared.topk(min(k, len(part)), largest=False)
        near, at = torch.cat([best, near], 1), torch.cat([indices, at + start], 1)
        best, chosen = near.topk(min(k, near.shape[1]), largest=False)
        indices = at.gather(1, chosen)
    exact = torch.stack([(samples - training[column].double()).square().mean(1).sqrt() for column in indices.T], 1)
    distances, order = exact.sort(dim=1, stable=True)
    return indices.gather(1, order), distances
