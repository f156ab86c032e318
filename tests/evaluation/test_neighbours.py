import pytest
import torch

from fastdiff.evaluation import nearest, neighbours


def random_images(n, seed):
    return torch.rand(n, 2, 3, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("k", [1, 3, 40])
def test_equals_brute_force_over_chunks(monkeypatch, k):
    monkeypatch.setattr(neighbours, "SAMPLES_AT_ONCE", 7)
    monkeypatch.setattr(neighbours, "TRAINING_AT_ONCE", 11)
    samples, training = random_images(25, 0), random_images(40, 1)
    all_distances = (samples.double()[:, None] - training.double()[None]).square().mean((2, 3, 4)).sqrt()
    expected = all_distances.sort(dim=1)
    indices, distances = nearest(samples, training, k)
    assert indices.shape == distances.shape == (25, k)
    assert torch.equal(indices, expected.indices[:, :k])
    torch.testing.assert_close(distances, expected.values[:, :k], rtol=1e-12, atol=0)


def test_copies_are_at_exactly_zero():
    training = random_images(50, 0)
    chosen = torch.tensor([7, 0, 49])
    indices, distances = nearest(training[chosen], training)
    assert indices[:, 0].tolist() == chosen.tolist()
    assert distances.tolist() == [[0.0]] * 3


def test_unit_is_rms_per_value():
    black, white = torch.full((1, 1, 5, 5), -1.0), torch.full((1, 1, 5, 5), 1.0)
    assert nearest(black, white)[1].item() == 2.0
    assert nearest(black, torch.zeros(1, 1, 5, 5))[1].item() == 1.0


def test_refuses():
    images = random_images(4, 0)
    for k in (0, 5):
        with pytest.raises(ValueError, match=rf"k must lie in 1\.\.4.* got {k}"):
            nearest(images, images, k)
    with pytest.raises(ValueError, match=r"one shape, got \(1, 3, 4\) and \(2, 3, 4\)"):
        nearest(images[:, :1], images)
    with pytest.raises(ValueError, match=r"training must lie in \[-1, 1\]"):
        nearest(images, images * 255)
