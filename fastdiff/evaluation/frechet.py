"""The Frechet distance between two sets of features, each taken as a Gaussian.

The value depends on the feature space and falls with the number of samples, so it means something only beside
`real_vs_real` at the same number, in the same space.
"""

import numpy as np
import torch

Features = np.ndarray | torch.Tensor


def moments(features: Features) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and unbiased covariance [D, D], in float64, of features [N, D].

    Raises:
        ValueError: features are not [N, D] with N >= 2 and D >= 1, or not finite.
    """
    values = _float64(features, "features")
    mean = values.mean(axis=0)
    centred = values - mean  # centred first: E[x x^T] - mean mean^T would cancel
    return mean, centred.T @ centred / (len(values) - 1)


def frechet_distance(a: Features, b: Features) -> float:
    """The squared Frechet distance between Gaussians fitted to features a [N, D] and b [M, D]; 0 at best.

    Raises:
        ValueError: a or b is not [N, D] with N >= 2, not finite, or they differ in D.

    Source: D. Dowson, B. Landau, "The Frechet distance between multivariate normal distributions", 1982, eq. 4.
    """
    a, b = _float64(a, "a"), _float64(b, "b")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"a and b must have the same number of features, got {a.shape[1]} and {b.shape[1]}")
    return gaussian_frechet(*moments(a), *moments(b))


def gaussian_frechet(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """The squared Frechet distance between two Gaussians: `|m_a - m_b|^2 + Tr(S_a + S_b - 2 (S_a S_b)^(1/2))`.

    S_a S_b is not symmetric, but has the eigenvalues of S_a^(1/2) S_b S_a^(1/2), which is, and positive semi-definite
    besides: the trace of the root is the sum of the roots of its eigenvalues, real even where S_a is singular.

    Args:
        mean_a, mean_b: [D], float64.
        cov_a, cov_b: [D, D], float64, symmetric positive semi-definite.
    """
    values, vectors = np.linalg.eigh(cov_a)
    root_a = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    product = root_a @ cov_b @ root_a
    trace_root = np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(min=0)).sum()
    squared = ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * trace_root
    return max(float(squared), 0.0)  # equal Gaussians may round to below zero


def real_vs_real(features: Features, n: int, seed: int = 0) -> float:
    """The floor: the squared Frechet distance between two disjoint random sets of n of the same real features.

    Args:
        features: [N, D], N >= 2 n.
        n: at least 2; as many as there are samples in the distance to be judged.
        seed: which sets.

    Raises:
        ValueError: n is out of range, or features are not as `moments` needs them.
    """
    values = _float64(features, "features")
    if n < 2 or 2 * n > len(values):
        raise ValueError(f"n must lie in 2..{len(values) // 2}, half of {len(values)} features, got {n}")
    order = np.random.default_rng(seed).permutation(len(values))
    return frechet_distance(values[order[:n]], values[order[n : 2 * n]])


def _float64(features: Features, name: str) -> np.ndarray:
    if isinstance(features, torch.Tensor):
        features = features.detach().cpu().double().numpy()
    values = np.asarray(features, dtype=np.float64)
    if values.ndim != 2 or len(values) < 2 or values.shape[1] < 1:
        raise ValueError(f"{name} must be [N, D] with N >= 2 and D >= 1, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite, found NaN or infinity")
    return values
