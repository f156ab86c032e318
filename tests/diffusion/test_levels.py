from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from fastdiff.diffusion import NoiseScheduler, karras_sigmas, karras_timesteps, spaced_timesteps
from fastdiff.diffusion.levels import SPACINGS, abar_at, choose_timesteps, timesteps_at


@given(st.integers(1, 1200), st.data(), st.sampled_from(SPACINGS[:3]))
@settings(max_examples=200, deadline=None)
def test_spacings_are_distinct_and_fall(count, data, spacing):
    steps = data.draw(st.integers(1, count))
    t = spaced_timesteps(count, steps, spacing)
    assert len(t) == steps
    assert all(a > b for a, b in pairwise(t))
    assert 0 <= t[-1] <= t[0] < count
    if spacing != "leading":
        assert t[0] == count - 1
    if spacing == "leading" or (spacing == "linspace" and steps > 1):
        assert t[-1] == 0
    assert spaced_timesteps(count, count, spacing) == list(range(count - 1, -1, -1))


def test_spacings_are_the_published_ones():
    assert spaced_timesteps(1000, 10, "leading") == list(range(900, -1, -100))
    assert spaced_timesteps(1000, 10, "linspace") == [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]
    assert spaced_timesteps(1000, 10, "trailing") == list(range(999, 0, -100))
    for steps, message in [(0, r"steps must be in 1\.\.10"), (11, "got 11")]:
        with pytest.raises(ValueError, match=message):
            spaced_timesteps(10, steps)
    for spacing in SPACINGS:
        with pytest.raises(TypeError, match=r"steps must be an integer, got 2\.5"):
            choose_timesteps(NoiseScheduler(10), 2.5, spacing)
    with pytest.raises(ValueError, match="leading, linspace, trailing, karras, got 'even'"):
        spaced_timesteps(10, 5, "even")


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_levels_between_timesteps(kind):
    s = NoiseScheduler(schedule_type=kind)
    abar = s.exact["alphas_cumprod"]
    assert_close(abar_at(s, [999, 500, 0]), abar[[999, 500, 0]], rtol=0, atol=0)
    sigma = ((1 - abar) / abar).sqrt()
    between = ((1 - abar_at(s, [500.25])) / abar_at(s, [500.25])).sqrt()
    assert between.item() == pytest.approx(sigma[500].item() ** 0.75 * sigma[501].item() ** 0.25)
    t = torch.tensor([998.6, 500.25, 17.0, 0.3], dtype=torch.float64)
    levels = abar_at(s, t.tolist())
    assert_close(timesteps_at(s, ((1 - levels) / levels).sqrt()), t, rtol=0, atol=1e-6)
    assert timesteps_at(s, torch.tensor([1e9, 1e-9], dtype=torch.float64)).tolist() == [999, 0]


def test_karras_timesteps():
    s = NoiseScheduler()
    abar = s.exact["alphas_cumprod"]
    low, high = (((1 - abar[k]) / abar[k]).sqrt().item() for k in (0, -1))
    for sigma_max, top in [(80.0, 80.0), (1e9, high)]:
        levels = abar_at(s, karras_timesteps(s, 18, sigma_max))
        np.testing.assert_allclose(((1 - levels) / levels).sqrt(), karras_sigmas(18, low, top)[:-1], rtol=1e-9)
    assert choose_timesteps(s, 7, "karras") == karras_timesteps(s, 7)
    assert choose_timesteps(s) == list(range(999, -1, -1))


@pytest.mark.parametrize("options", [{}, {"schedule_type": "cosine"}, {"zero_terminal_snr": True}])
@pytest.mark.parametrize("count", [5, 50])
def test_karras_timesteps_fall_for_any_number_of_steps(options, count):
    s = NoiseScheduler(count, **options)
    for steps in range(1, count + 1):
        t = karras_timesteps(s, steps)
        assert len(t) == steps
        assert all(a > b for a, b in pairwise(t))
        assert count - 1 >= t[0]
        assert t[-1] >= 0
    assert karras_timesteps(NoiseScheduler(1), 1) == [0]
    with pytest.raises(ValueError, match=rf"steps must be in 1\.\.{count}"):
        karras_timesteps(s, count + 1)
