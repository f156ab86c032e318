import numpy as np
import pytest
import torch

from fastdiff.data import denormalize_images, normalize_images


@pytest.mark.parametrize("make", [np.array, torch.tensor], ids=["numpy", "torch"])
def test_known_values_both_ways(make):
    outside, inside = [0.0, 0.25, 0.5, 1.0], [-1.0, -0.5, 0.0, 1.0]
    x = make(outside)
    assert normalize_images(x).tolist() == inside
    assert denormalize_images(make(inside)).tolist() == outside
    assert x.tolist() == outside  # a new array: the caller's stays
    assert type(normalize_images(x)) is type(x)
    assert normalize_images(x).dtype == x.dtype


@pytest.mark.parametrize("x", [np.zeros(3, np.uint8), torch.zeros(3, dtype=torch.uint8)], ids=["numpy", "torch"])
def test_uint8_is_refused_with_advice(x):
    with pytest.raises(TypeError, match=r"got .*uint8; for pixels in 0..255 take x\..* / 255"):
        normalize_images(x)
    with pytest.raises(TypeError, match=r"got .*uint8; .*normalize_images on x / 255"):
        denormalize_images(x)


def test_a_list_is_refused():
    with pytest.raises(TypeError, match="tensor or a NumPy array, got list"):
        normalize_images([0.0, 1.0])
