"""The forward process: how much signal and how much noise an image holds at each timestep 0..T-1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fastdiff import ops
from fastdiff.diffusion import betas as shapes
from fastdiff.diffusion.loss import loss_weights
from fastdiff.diffusion.samplers import ddpm

SCHEDULES = ("linear", "cosine", "scaled_linear", "sigmoid")


class NoiseScheduler(nn.Module):
    """A noise schedule q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I) with T timesteps. Ho et al. 2020, equation 4.

    Tables [T] are computed in float64 and kept as float32 buffers, outside of the state_dict and float32 whatever the
    model around them is cast to: `betas`, `alphas`, `alphas_cumprod` (abar), `alphas_cumprod_prev`,
    `sqrt_alphas_cumprod`, `sqrt_one_minus_alphas_cumprod`, `snr` (abar / (1 - abar)), `posterior_variance`,
    `posterior_mean_coef1` and `posterior_mean_coef2` (Ho et al. 2020, equation 7). `exact` holds the same tables in
    float64 on the CPU.

    Args:
        timesteps: T.
        beta_start, beta_end: the ends of the schedule, 0 < start <= end < 1. The cosine schedule has its own.
        schedule_type: 'linear' (Ho et al. 2020), 'cosine' (Nichol & Dhariwal 2021, s = 0.008, betas at most 0.999),
            'scaled_linear' (Rombach et al. 2022) or 'sigmoid' (Xu et al. 2022).
        num_timesteps: another name for timesteps.
        zero_terminal_snr: make the last timestep pure noise (Lin et al. 2023, algorithm 1), for prediction 'v' or 'x0'.
        rescale_betas: multiply the betas by 1000 / T, at most 0.999, so that a short schedule ends in noise as the one
            with T = 1000 does. Changes nothing in the cosine schedule, which does so by itself.

    Raises ValueError for an argument out of range, or both names of timesteps.
    """

    def __init__(
        self,
        timesteps: int | None = None,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        schedule_type: str = "linear",
        *,
        num_timesteps: int | None = None,
        zero_terminal_snr: bool = False,
        rescale_betas: bool = False,
    ) -> None:
        super().__init__()
        if timesteps is not None and num_timesteps is not None:
            raise ValueError("give timesteps or num_timesteps, not both: they are one argument")
        count = next((n for n in (timesteps, num_timesteps) if n is not None), 1000)
        if count < 1:
            raise ValueError(f"timesteps must be at least 1, got {count}")
        if not 0 < beta_start <= beta_end < 1:
            raise ValueError(f"betas must satisfy 0 < beta_start <= beta_end < 1, got {beta_start} and {beta_end}")
        if schedule_type not in SCHEDULES:
            raise ValueError(f"schedule_type must be one of {', '.join(SCHEDULES)}, got {schedule_type!r}")
        self.timesteps = self.num_timesteps = int(count)
        self.beta_start, self.beta_end, self.schedule_type = beta_start, beta_end, schedule_type
        self.zero_terminal_snr, self.rescale_betas = zero_terminal_snr, rescale_betas

        betas = self._betas()
        if rescale_betas and schedule_type != "cosine":
            betas = (betas * (1000 / self.timesteps)).clamp(max=shapes.MAX_BETA)
        if zero_terminal_snr:
            betas = shapes.zero_terminal_snr(betas)
        self.exact = _tables(betas)
        for name, table in self.exact.items():
            self.register_buffer(name, table.float(), persistent=False)
        self._derived: dict[tuple[Any, ...], torch.Tensor] = {}

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that rebuild this schedule: `NoiseScheduler(**config)`. JSON can hold them."""
        names = ("timesteps", "beta_start", "beta_end", "schedule_type", "zero_terminal_snr", "rescale_betas")
        return {name: getattr(self, name) for name in names}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.config.items())

    def _betas(self) -> torch.Tensor:
        if self.schedule_type == "cosine":
            return shapes.cosine_betas(self.timesteps)
        return getattr(shapes, f"{self.schedule_type}_betas")(self.timesteps, self.beta_start, self.beta_end)

    def _linear_beta_schedule(self) -> torch.Tensor:
        return shapes.linear_betas(self.timesteps, self.beta_start, self.beta_end).float()

    def _scaled_linear_beta_schedule(self) -> torch.Tensor:
        return shapes.scaled_linear_betas(self.timesteps, self.beta_start, self.beta_end).float()

    def _sigmoid_beta_schedule(self) -> torch.Tensor:
        return shapes.sigmoid_betas(self.timesteps, self.beta_start, self.beta_end).float()

    def _cosine_beta_schedule(self, s: float = 0.008) -> torch.Tensor:
        return shapes.cosine_betas(self.timesteps, s).float()

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> NoiseScheduler:
        # half(), bfloat16() and to_empty() on a model move the tables but must not round or lose them.
        super()._apply(fn, recurse)
        for name, table in self.exact.items():
            self._buffers[name] = table.to(self._buffers[name].device, torch.float32)
        return self

    def at(self, table: torch.Tensor, t: torch.Tensor, dims: int = 4) -> torch.Tensor:
        """Entries of a table [T] at timesteps t [B], as [B, 1, ...] with `dims` dimensions, on t's device.

        Raises TypeError unless t is int64 or int32, ValueError where one on the CPU is not in 0..T-1.
        """
        if t.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"t must be int64 or int32, got {t.dtype}")
        if t.device.type == "cpu" and t.numel() and not torch.compiler.is_compiling():  # on CUDA this would synchronise
            low, high = (int(v) for v in torch.aminmax(t))
            if low < 0 or high >= self.timesteps:
                raise ValueError(f"t must be in 0..{self.timesteps - 1}, got {low if low < 0 else high}")
        return table.to(t.device)[t].reshape(-1, *(1,) * (dims - 1))

    def get_coefficients(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(sqrt(abar_t), sqrt(1 - abar_t)) for timesteps t int [B], each [B, 1, 1, 1]. Errors as in `at`."""
        return self.at(self.sqrt_alphas_cumprod, t), self.at(self.sqrt_one_minus_alphas_cumprod, t)

    def sample_timesteps(
        self, batch_size: int, device: torch.device | str = "cpu", generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Timesteps int64 [batch_size], uniform over all of 0..T-1, from the generator or torch's own."""
        place = device if generator is None else generator.device
        return torch.randint(self.timesteps, (batch_size,), generator=generator, device=place).to(device)

    def add_noise(
        self,
        x0: torch.Tensor,
        t: torch.Tensor,
        noise: torch.Tensor | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(x_t, noise) with x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise. Ho et al. 2020, equation 4.

        Args:
            x0: [N, ...], floating. t: int [N] or [1], in 0..T-1.
            noise: like x0. Without it, standard normal, made from seed or generator, by default torch's generator.

        Raises TypeError or ValueError naming the argument; noise together with seed or generator is one.
        """
        signal, sigma = self._signal_and_sigma(x0.device)
        if noise is not None:
            if seed is not None or generator is not None:
                raise ValueError("give noise, or seed or generator to make it from, not both")
            return ops.q_sample(x0, t, signal, sigma, noise)
        seeds = ops.image_seeds(ops.draw_seed(seed, generator), x0.shape[0], x0.device)
        return ops.q_sample(x0, t, signal, sigma, seeds=seeds)

    def add_keyed_noise(
        self, x0: torch.Tensor, t: torch.Tensor, seeds: torch.Tensor, step: int | torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`add_noise` with the training noise of each image's seed (int64 [N]) and the optimizer step."""
        return ops.q_sample(x0, t, *self._signal_and_sigma(x0.device), seeds=seeds, step=step)

    def _signal_and_sigma(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        return self.sqrt_alphas_cumprod.to(device), self.sqrt_one_minus_alphas_cumprod.to(device)

    def posterior_mean(self, x0: torch.Tensor, xt: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The mean of q(x_{t-1} | x_t, x_0), like x0; t int [N]; its variance is `posterior_variance[t]`.

        Ho et al. 2020, equation 7. Errors as in `at`.
        """
        of_x0 = self.at(self.posterior_mean_coef1, t, x0.dim()).to(x0.dtype)
        of_xt = self.at(self.posterior_mean_coef2, t, x0.dim()).to(x0.dtype)
        return of_x0 * x0 + of_xt * xt

    def ddpm_table(self, prediction: str = "eps", variance: str = "fixed_small") -> torch.Tensor:
        """The table float32 [T, 5] of `ops.ddpm_step`, row t for the step from t to t - 1, on the buffers' device.

        See `samplers.ddpm` for the arguments. Raises ValueError for prediction 'eps' with zero_terminal_snr.
        """

        def rows() -> torch.Tensor:
            return ddpm(self, range(self.timesteps - 1, -1, -1), prediction, variance).rows.flip(0)[:, :5]

        return self._kept(("ddpm", prediction, variance), rows)

    def loss_weights(self, prediction: str = "eps", weighting: str = "uniform") -> torch.Tensor:
        """The weights float32 [T] on the squared error of the network's output, on the buffers' device; see `loss.py`."""
        return self._kept(
            ("loss", prediction, weighting), lambda: loss_weights(weighting, prediction, self.exact["alphas_cumprod"])
        )

    @torch.inference_mode(False)  # a table that is kept serves training too
    def _kept(self, key: tuple[str, ...], make: Callable[[], torch.Tensor]) -> torch.Tensor:
        place = (*key, self.betas.device)
        if place not in self._derived:
            self._derived[place] = make().contiguous().to(self.betas.device, torch.float32)
        return self._derived[place]


def _tables(betas: torch.Tensor) -> dict[str, torch.Tensor]:
    alphas = 1 - betas
    abar = alphas.cumprod(0)
    before = torch.cat([abar.new_ones(1), abar[:-1]])  # abar_{t-1}, where x_{-1} is the image itself
    return {
        "betas": betas,
        "alphas": alphas,
        "alphas_cumprod": abar,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": abar.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - abar).sqrt(),
        "snr": abar / (1 - abar),
        "posterior_variance": betas * (1 - before) / (1 - abar),
        "posterior_mean_coef1": before.sqrt() * betas / (1 - abar),
        "posterior_mean_coef2": alphas.sqrt() * (1 - before) / (1 - abar),
    }


def add_noise(
    x0: torch.Tensor,
    t: torch.Tensor,
    scheduler: NoiseScheduler,
    noise: torch.Tensor | None = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x_t, noise): `scheduler.add_noise`."""
    return scheduler.add_noise(x0, t, noise, seed, generator)
