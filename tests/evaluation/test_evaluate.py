import json

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from fastdiff.evaluation import judge

HELD_OUT = 500


@pytest.fixture(scope="module")
def digits():
    """Digits in random order, as (samples, labels, real, real labels): the samples are real images, held out."""
    bunch = load_digits()
    order = torch.randperm(len(bunch.target), generator=torch.Generator().manual_seed(0))
    images, labels = torch.from_numpy(bunch.images).float()[order, None] / 8 - 1, torch.from_numpy(bunch.target)[order]
    return images[:HELD_OUT], labels[:HELD_OUT], images[HELD_OUT:], labels[HELD_OUT:]


def test_unseen_real_images_are_as_good_as_real(digits):
    result = judge(*digits)
    assert result["accuracy_samples"] > 0.97
    assert result["accuracy_real"] > 0.97
    assert result["frechet_samples_vs_real"] < 1.3 * result["frechet_real_vs_real"]
    assert result["nearest_samples_rms"] == pytest.approx(result["nearest_real_rms"], rel=0.1)
    assert result["copied_share"] == 0.0


def test_noise_is_found_out(digits):
    _, labels, real, real_labels = digits
    noise = torch.rand(HELD_OUT, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    result = judge(noise, labels, real, real_labels)
    assert result["accuracy_samples"] < 0.25
    assert result["frechet_samples_vs_real"] > 20 * result["frechet_real_vs_real"]
    assert result["nearest_samples_rms"] > 2 * result["nearest_real_rms"]


def test_copies_are_found_out(digits):
    """Copies are best at everything but this."""
    _, _, real, real_labels = digits
    result = judge(real[:HELD_OUT], real_labels[:HELD_OUT], real, real_labels)
    assert result["copied_share"] == 1.0
    assert result["nearest_samples_rms"] < 0.75 * result["nearest_real_rms"]
    half = torch.cat([real[:100], digits[0][:100]])
    assert judge(half, None, real, real_labels)["copied_share"] == 0.5


def test_one_good_image_repeated_is_found_out(digits):
    samples, labels, real, real_labels = digits
    result = judge(samples[:1].expand(HELD_OUT, -1, -1, -1), labels[:1].expand(HELD_OUT), real, real_labels)
    assert result["accuracy_samples"] == 1.0
    assert result["frechet_samples_vs_real"] > 20 * result["frechet_real_vs_real"]


def test_wrong_classes_are_found_out(digits):
    samples, labels, real, real_labels = digits
    assert judge(samples, (labels + 1) % 10, real, real_labels)["accuracy_samples"] < 0.05


def test_the_floor_of_accuracy_is_on_images_that_the_classifier_has_not_seen(digits):
    """Labels at random can be learned by heart, but not guessed."""
    samples, _, real, real_labels = digits
    shuffled = real_labels[torch.randperm(len(real_labels), generator=torch.Generator().manual_seed(0))]
    assert judge(samples, None, real, shuffled)["accuracy_real"] < 0.2


def test_samples_are_compared_with_the_half_that_the_classifier_has_not_seen(digits):
    _, _, real, real_labels = digits
    half_b = train_test_split(real[:1000], test_size=0.5, stratify=real_labels[:1000], random_state=0)[1]
    result = judge(half_b, None, real[:1000], real_labels[:1000])
    assert result["frechet_n"] == 500
    assert result["frechet_samples_vs_real"] == pytest.approx(0, abs=1e-5)


def test_every_figure_has_its_number(digits):
    samples, labels, real, real_labels = digits
    result = judge(samples[:50], labels[:50], real, real_labels)
    numbers = {key: value for key, value in result.items() if key.endswith("_n")}
    assert numbers == {
        "samples_n": 50,
        "real_n": 1297,
        "classifier_trained_on_n": 648,
        "accuracy_samples_n": 50,
        "accuracy_real_n": 649,
        "frechet_n": 50,
        "nearest_training_n": 648,
    }
    assert json.loads(json.dumps(result)) == result
    assert result["frechet_space"] == "pixels"
    assert not any("fid" in key for key in result)  # that name belongs to Inception's features


def test_seed_fixes_the_result_and_the_global_state_does_not(digits):
    torch.manual_seed(1)
    first = judge(*digits, seed=3)
    torch.manual_seed(2)
    assert judge(*digits, seed=3) == first
    assert judge(*digits, seed=4)["frechet_real_vs_real"] != first["frechet_real_vs_real"]


def test_without_labels(digits):
    samples, _, real, real_labels = digits
    result = judge(samples, None, real, real_labels)
    assert (result["accuracy_samples"], result["accuracy_samples_n"]) == (None, 0)


def test_refuses(digits):
    samples, labels, real, real_labels = digits
    with pytest.raises(ValueError, match=r"labels must be integers .* one for each of 500 images"):
        judge(samples, labels[:3], real, real_labels)
    with pytest.raises(ValueError, match="real_labels must be integers"):
        judge(samples, labels, real, real_labels[:3])
    with pytest.raises(ValueError, match=r"samples must lie in \[-1, 1\]"):
        judge(samples * 2, labels, real, real_labels)
    with pytest.raises(ValueError, match=r"one shape, got \(1, 8, 4\) and \(1, 8, 8\)"):
        judge(samples[..., :4], labels, real, real_labels)
    with pytest.raises(ValueError, match="samples must be at least 2, got 1"):
        judge(samples[:1], labels[:1], real, real_labels)
    with pytest.raises(ValueError, match=r"at least 2 classes of at least 2 images, got classes of \[2, 1\]"):
        judge(samples, labels, real[:3], torch.tensor([0, 0, 1]))
