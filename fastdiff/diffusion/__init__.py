"""Diffusion: noise schedules, samplers, guidance, and the model that trains and samples."""

from fastdiff.diffusion.betas import karras_sigmas
from fastdiff.diffusion.generate import DDPMSampler, generate_images, generate_interpolation
from fastdiff.diffusion.interpolation import slerp
from fastdiff.diffusion.levels import karras_timesteps, spaced_timesteps
from fastdiff.diffusion.loop import run_sampler
from fastdiff.diffusion.model import DiffusionModel
from fastdiff.diffusion.samplers import SAMPLERS
from fastdiff.diffusion.sampling import sample
from fastdiff.diffusion.schedule import NoiseScheduler, add_noise

__all__ = [
    "SAMPLERS",
    "DDPMSampler",
    "DiffusionModel",
    "NoiseScheduler",
    "add_noise",
    "generate_images",
    "generate_interpolation",
    "karras_sigmas",
    "karras_timesteps",
    "run_sampler",
    "sample",
    "slerp",
    "spaced_timesteps",
]
