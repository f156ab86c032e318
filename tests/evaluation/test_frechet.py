import numpy as np
import pytest
import torch

from fastdiff.evaluation import frechet_distance, gaussian_frechet, moments, real_vs_real


def with_moments(mean, cov, n, seed):
    """n points whose sample mean and unbiased covariance are the given ones, up to rounding."""
    x = np.random.default_rng(seed).standard_normal((n, len(mean)))
    x -= x.mean(0)
    white = np.linalg.solve(np.linalg.cholesky(np.cov(x.T).reshape(len(mean), -1)), x.T).T
    return white @ np.linalg.cholesky(cov).T + mean


def random_covariance(d, seed):
    root = np.random.default_rng(seed).standard_normal((d, d))
    return root @ root.T + 0.1 * np.eye(d)


def test_moments_are_numpys():
    x = np.random.default_rng(0).standard_normal((50, 4)) + 1e6  # the offset would ruin E[x^2] - E[x]^2
    mean, cov = moments(x)
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-15)
    np.testing.assert_allclose(cov, np.cov(x.T), rtol=1e-9)
    assert moments(torch.from_numpy(x).float())[1].dtype == np.float64


def test_one_dimension():
    """(m1 - m2)^2 + (s1 - s2)^2."""
    a, b = with_moments([1.0], [[4.0]], 30, 0), with_moments([-2.0], [[0.25]], 20, 1)
    assert frechet_distance(a, b) == pytest.approx(3.0**2 + 1.5**2, rel=1e-10)


def test_diagonal():
    """Independent coordinates add up."""
    a = with_moments([0.0, 1.0, 2.0], np.diag([1.0, 4.0, 9.0]), 40, 0)
    b = with_moments([1.0, 1.0, 0.0], np.diag([4.0, 4.0, 1.0]), 50, 1)
    assert frechet_distance(a, b) == pytest.approx((1 + 0 + 4) + (1 + 0 + 4), rel=1e-10)


def test_covariances_that_do_not_commute():
    """Against the matrix square root of the product itself, which is not symmetric."""
    from scipy.linalg import sqrtm

    a, b = random_covariance(6, 0), random_covariance(6, 1)
    assert not np.allclose(a @ b, b @ a)
    expected = np.trace(a) + np.trace(b) - 2 * np.trace(sqrtm(a @ b)).real
    assert gaussian_frechet(np.zeros(6), a, np.zeros(6), b) == pytest.approx(expected, rel=1e-10)


def test_singular_covariances():
    """More features than points, as pixels often are: orthogonal lines have no overlap, a line equals itself."""
    mean, x, y = np.zeros(2), np.diag([4.0, 0.0]), np.diag([0.0, 9.0])
    assert gaussian_frechet(mean, x, mean, y) == pytest.approx(13.0)
    assert gaussian_frechet(mean, x, mean, x) == pytest.approx(0.0, abs=1e-12)
    few = np.random.default_rng(0).standard_normal((5, 64))
    assert frechet_distance(few, few) == pytest.approx(0.0, abs=1e-5)


def test_identity_symmetry_and_order():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((100, 8)), rng.standard_normal((80, 8)) * 2 + 1
    distance = frechet_distance(a, b)
    assert distance > 1
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(a, a) >= 0
    assert frechet_distance(b, a) == pytest.approx(distance, rel=1e-9)
    assert frechet_distance(rng.permutation(a), b) == pytest.approx(distance, rel=1e-9)
    assert frechet_distance(torch.from_numpy(a), torch.from_numpy(b)) == distance


def test_real_vs_real_is_between_disjoint_halves():
    """Two halves of two identical pairs each: shared images would make some seed come out at 0 or below."""
    features = np.array([[0.0], [0.0], [1.0], [1.0]])
    expected = {0.0, 1.0}  # equal halves {0,1} {0,1}; or {0,0} {1,1}, one apart without spread
    got = {round(real_vs_real(features, 2, seed), 9) for seed in range(30)}
    assert got == expected


def test_floor_falls_with_n_and_is_below_another_distribution():
    features = np.random.default_rng(0).standard_normal((4000, 8))
    small, large = real_vs_real(features, 50, seed=1), real_vs_real(features, 2000, seed=1)
    assert 0 < large < small / 5
    assert large < frechet_distance(features, features + 1) == pytest.approx(8.0)
    assert real_vs_real(features, 50, seed=1) == small != real_vs_real(features, 50, seed=2)


@pytest.mark.parametrize(
    ("a", "message"),
    [
        (np.zeros((1, 3)), r"a must be \[N, D\] with N >= 2 .* got shape \(1, 3\)"),
        (np.zeros(5), r"got shape \(5,\)"),
        (np.zeros((5, 0)), r"D >= 1, got shape \(5, 0\)"),
        (np.full((5, 3), np.nan), "a must be finite"),
        (np.full((5, 3), np.inf), "a must be finite"),
        (np.zeros((5, 4)), "same number of features, got 4 and 3"),
    ],
)
def test_refuses(a, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(a, np.zeros((5, 3)))


@pytest.mark.parametrize("n", [1, 6])
def test_floor_needs_two_halves(n):
    with pytest.raises(ValueError, match=rf"n must lie in 2\.\.5, half of 11 features, got {n}"):
        real_vs_real(np.zeros((11, 3)), n)
