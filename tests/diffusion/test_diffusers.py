"""Our samplers beside those of diffusers, where it is installed: the same network, start and noise give the same images.

Held with diffusers 0.42.1. It works in float32 throughout, with 1 - abar rounded near the image, which is what the tolerance
is for; its samplers of Karras et al. 2022 walk x_EDM = x / sqrt(abar), and `scale_model_input` is their way to our x. What
differs:

- From trailing or linspace timesteps its Euler and Heun start at sigma_max times the noise, ours at x of unit variance, which
  is sqrt(1 + sigma_max^2) times; the test starts them there.
- DDPM with fixed_large adds noise in the last step too, unless that is at t = 0. Ours never does: it ends in the image.
- DDIM with clip_sample clamps x0 but not the direction of the noise, unless use_clipped_model_output; in ours both agree.
- Only its DDPM and DDIM clamp x0 by default; ours all do, at clip = 1.
- Euler with s_churn evaluates the network before the noise is added, not after as algorithm 2 of Karras et al. has it.
- With spacing leading or linspace the multistep samplers visit other timesteps than DDPM: n of n + 1. We have one definition.
- Timesteps between whole ones have sigma linear in t in its Euler, log sigma in its Karras levels and in all of ours.
- Karras levels start at the schedule's sigma_max, 157 for the linear one, ours at 80 at most; its multistep samplers round the
  timesteps that they tell the network, ours are between whole ones. Its one step of Karras levels is at t = 0.
- With zero terminal SNR its multistep and Euler samplers put abar = 2^-24 in the place of 0; ours compute with 0.
- On the cosine schedule, whose sigma begins at 20,000, Heun's steps in sigma multiply float32's rounding by thousands unless
  there are many: it is compared there with all steps only. Spacing karras is made for Heun.
"""

from __future__ import annotations

import importlib

import pytest
import torch
from torch.testing import assert_close

from fastdiff import ops
from fastdiff.diffusion import NoiseScheduler, karras_timesteps, run_sampler
from fastdiff.diffusion.levels import abar_at, choose_timesteps
from fastdiff.diffusion.samplers import sampler_steps

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed, so there is nothing to compare with")

T, SHAPE = 1000, (2, 1, 4, 4)
SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
CASES = {  # our sampler and options; theirs, its options and its spacing
    "ddpm": ("ddpm", {}, "DDPMScheduler", {"clip_sample": False}, "leading"),
    "ddpm clamped": ("ddpm", {}, "DDPMScheduler", {}, "leading"),
    "ddpm large": (
        "ddpm", {"variance": "fixed_large"}, "DDPMScheduler", {"clip_sample": False, "variance_type": "fixed_large"}, "leading",
    ),
    "ddim": ("ddim", {}, "DDIMScheduler", {"clip_sample": False}, "leading"),
    "ddim, eta": ("ddim", {"eta": 0.6}, "DDIMScheduler", {"clip_sample": False}, "trailing"),
    "euler": ("euler", {}, "EulerDiscreteScheduler", {}, "trailing"),
    "euler, karras": ("euler", {}, "EulerDiscreteScheduler", {"use_karras_sigmas": True}, "linspace"),
    "euler_ancestral": ("euler_ancestral", {}, "EulerAncestralDiscreteScheduler", {}, "trailing"),
    "heun": ("heun", {}, "HeunDiscreteScheduler", {"beta_start": 1e-4, "beta_end": 0.02}, "trailing"),
    "dpmpp_2m": ("dpmpp_2m", {}, "DPMSolverMultistepScheduler", {}, "trailing"),
    "dpmpp_2m_sde": ("dpmpp_2m_sde", {}, "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "trailing"),
    "unipc": ("unipc", {}, "UniPCMultistepScheduler", {}, "trailing"),
}  # fmt: skip


def network(scheduler, prediction):
    """A smooth x0 that depends on x and t, told as eps, x0 or v."""

    def denoise(x, t):
        t = float(t.reshape(-1)[0])
        a = float(abar_at(scheduler, [t]))
        x0 = 1.2 * torch.sin(2 * x + t / 300)
        eps = (x - a**0.5 * x0) / (1 - a) ** 0.5
        return {"eps": eps, "x0": x0, "v": a**0.5 * eps - (1 - a) ** 0.5 * x0}[prediction]

    return denoise


def theirs(name, options, steps, x, seeds, denoise, eta, monkeypatch):
    scheduler = getattr(diffusers, name)(num_train_timesteps=T, **options)
    scheduler.set_timesteps(steps)
    module = importlib.import_module(type(scheduler).__module__)
    if hasattr(module, "randn_tensor"):
        noise = iter(ops.philox_normal(SHAPE, seeds, k, ops.Purpose.SAMPLER_STEP) for k in range(2 * steps))
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: next(noise))
    if name.startswith(("Euler", "Heun")):
        x = x * (scheduler.sigmas[0] ** 2 + 1).sqrt()
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t)
        x = scheduler.step(denoise(seen, t), t, x, **({} if eta is None else {"eta": eta})).prev_sample
    return x


def compared():
    for case in CASES:
        for steps in (1, 5, 10, 25, T):
            if "karras" not in case or 1 < steps < T:
                yield case, "linear", steps
            if "karras" not in case and (case != "heun" or steps == T):
                yield case, "cosine", steps


@pytest.mark.parametrize(("case", "schedule", "steps"), compared())
def test_images_are_theirs(case, schedule, steps, monkeypatch):
    ours, options, name, their_options, spacing = CASES[case]
    scheduler = NoiseScheduler(T, schedule_type=schedule)
    seeds = ops.image_seeds(1, SHAPE[0])
    start = ops.philox_normal(SHAPE, seeds, 0)
    t = karras_timesteps(scheduler, steps, torch.inf) if "karras" in case else choose_timesteps(scheduler, steps, spacing)
    # Theirs computes x0 from eps where abar is 2e-9 in float32, and euler_ancestral knows no x0.
    for prediction in ("v",) if schedule == "cosine" else ("eps", "v") if ours == "euler_ancestral" else PREDICTIONS:
        denoise = network(scheduler, prediction)
        table = sampler_steps(ours, scheduler, t, prediction, **options)
        got, _ = run_sampler(denoise, start, table, clip=1.0 if "clamped" in case else None, seeds=seeds)
        config = {"timestep_spacing": spacing, "beta_schedule": SCHEDULES[schedule], "prediction_type": PREDICTIONS[prediction]}
        want = theirs(name, their_options | config, steps, start, seeds, denoise, options.get("eta"), monkeypatch)
        tolerance = 6e-3 if schedule == "cosine" else 5e-4
        assert got.abs().max() > 0.5
        assert_close(got, want, rtol=0, atol=tolerance, msg=lambda m, p=prediction: f"{p}: {m}")
