"""The configuration of a run: typed dataclasses that hold the only defaults, and their range checks."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal


def require(condition: bool, name: str, allowed: str, got: object) -> None:
    if not condition:
        raise ValueError(f"{name} must be {allowed}, got {got!r}")


@dataclass
class ModelConfig:
    """The network."""

    network: Literal["UNet", "SimpleUNet"] = "UNet"
    """Kind of network; SimpleUNet uses model_channels and time_embed_dim alone."""
    model_channels: int = 64
    """Channels at full resolution."""
    channel_multipliers: tuple[int, ...] = (1, 2, 2)
    """Channels of each level over model_channels; each level halves height and width."""
    num_res_blocks: int = 2
    """Residual blocks per level."""
    attention_resolutions: tuple[int, ...] = (2, 4)
    """Down-sampling factors (1, 2, 4, ...) at which there is self-attention."""
    time_embed_dim: int = 256
    """Width of the time and label embedding."""
    norm: Literal["group", "instance", "batch"] = "group"
    """Normalisation of the residual blocks."""
    groups: int | None = None
    """Groups of the group norms; null: the largest divisor of the channels not above 32."""
    head_dim: int | None = None
    """Channels of an attention head; null: 64, or all where there are fewer."""
    conditioning: Literal["scale_shift", "scale", "add"] = "scale_shift"
    """How a residual block takes the embedding in."""
    dropout: float = 0.0
    """Dropout in the residual blocks, in [0, 1)."""
    class_conditional: bool = True
    """Condition on the labels where the data has them."""

    def __post_init__(self) -> None:
        for name in ("model_channels", "num_res_blocks"):
            require(getattr(self, name) >= 1, f"model.{name}", "at least 1", getattr(self, name))
        for name in ("groups", "head_dim"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"model.{name}", "at least 1, or null", value)
        multipliers, factors = self.channel_multipliers, self.attention_resolutions
        require(min(multipliers, default=0) >= 1, "model.channel_multipliers", "one or more numbers from 1 on", multipliers)
        powers = all(f >= 1 and f & (f - 1) == 0 for f in factors)
        require(powers, "model.attention_resolutions", "powers of two (1, 2, 4, ...)", factors)
        even = self.time_embed_dim >= 2 and self.time_embed_dim % 2 == 0
        require(even, "model.time_embed_dim", "even and at least 2", self.time_embed_dim)
        require(0 <= self.dropout < 1, "model.dropout", "in [0, 1)", self.dropout)


@dataclass
class DiffusionConfig:
    """Noise schedule, prediction and sampling."""

    timesteps: int = 1000
    """Steps T of the noise schedule."""
    schedule_type: Literal["linear", "cosine", "scaled_linear", "sigmoid"] = "cosine"
    """Shape of the noise schedule."""
    beta_start: float = 1e-4
    """First beta, for schedules that use it."""
    beta_end: float = 0.02
    """Last beta, for schedules that use it."""
    zero_terminal_snr: bool = False
    """Make the last timestep pure noise; for prediction v, x0 or edm."""
    prediction: Literal["eps", "x0", "v", "edm"] = "eps"
    """What the network predicts; edm: preconditioned as by Karras et al. 2022."""
    loss: Literal["mse", "huber"] = "mse"
    """Error of the prediction that training lowers."""
    loss_weighting: Literal["uniform", "min_snr", "p2"] = "uniform"
    """Weight of each timestep in the loss."""
    label_dropout: float = 0.1
    """Share of training images whose label is hidden, for guidance; in [0, 1)."""
    sampler: Literal["ddpm", "ddim", "euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc"] = "ddim"
    """Sampler of the run's pictures."""
    sampling_steps: int = 50
    """Steps of that sampler, 1..timesteps."""
    spacing: Literal["leading", "linspace", "trailing", "karras"] | None = None
    """Which timesteps those are; null: karras for heun, else trailing."""
    guidance: float = 1.5
    """Classifier-free guidance scale; 1 is none."""

    def __post_init__(self) -> None:
        require(self.timesteps >= 1, "diffusion.timesteps", "at least 1", self.timesteps)
        require(0 < self.beta_end < 1, "diffusion.beta_end", "in (0, 1)", self.beta_end)
        below = 0 < self.beta_start <= self.beta_end
        require(below, "diffusion.beta_start", f"in (0, {self.beta_end}] (diffusion.beta_end)", self.beta_start)
        require(0 <= self.label_dropout < 1, "diffusion.label_dropout", "in [0, 1)", self.label_dropout)
        within = 1 <= self.sampling_steps <= self.timesteps
        require(within, "diffusion.sampling_steps", f"in 1..{self.timesteps} (diffusion.timesteps)", self.sampling_steps)
        known = self.prediction != "eps" or not self.zero_terminal_snr
        require(known, "diffusion.prediction", "v, x0 or edm with diffusion.zero_terminal_snr", self.prediction)
        require(0 <= self.guidance < math.inf, "diffusion.guidance", "at least 0 and finite", self.guidance)


@dataclass
class TrainingConfig:
    """Optimisation."""

    steps: int = 10000
    """Optimizer steps."""
    batch_size: int = 128
    """Images per optimizer step."""
    accumulate: int = 1
    """Parts that a batch is computed in, to save memory; 1..batch_size."""
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    """Optimizer. Biases and norms have no weight decay."""
    lr: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 0.01
    """Weight decay of the weights."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warm-up."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm; 0: not at all."""
    ema_decay: float = 0.999
    """Decay of the averaged weights that are sampled from, at most (1 + n) / (10 + n) at step n."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """bf16: autocast; weights stay fp32. auto: bf16 where the device has instructions for it."""
    channels_last: bool = True
    """Memory format of weights and images."""
    compile: bool = False
    """torch.compile the network."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda, cuda:1, ..."""
    seed: int = 0
    """Seed of the run: weights, data order, noise. 0..2^63-1."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate"):
            require(getattr(self, name) >= 1, f"training.{name}", "at least 1", getattr(self, name))
        for name in ("weight_decay", "warmup_steps", "clip_norm"):
            require(getattr(self, name) >= 0, f"training.{name}", "at least 0", getattr(self, name))
        require(self.accumulate <= self.batch_size, "training.accumulate", "at most training.batch_size", self.accumulate)
        require(0 < self.lr < math.inf, "training.lr", "above 0 and finite", self.lr)
        require(0 <= self.ema_decay < 1, "training.ema_decay", "in [0, 1)", self.ema_decay)
        require(0 <= self.seed < 2**63, "training.seed", "in 0..2^63-1", self.seed)


@dataclass
class DataConfig:
    """The data set."""

    name: Literal["digits", "mnist"] = "digits"
    """digits (8x8, comes with scikit-learn) or mnist (28x28, IDX files)."""
    root: str | None = None
    """Folder with the data; null: the environment variable FASTDIFF_DATA."""
    download: bool = False
    """Download what is missing into root, and check it."""


@dataclass
class LoggingConfig:
    """The run folder and what goes into it."""

    run_dir: str | None = None
    """Folder of the run; null: runs/NAME after the data set. A folder that holds a run is not overwritten: NAME-2 is next."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    validate_every: int = 500
    """Steps between validation losses; the best one is kept as checkpoints/best. 0: never."""
    checkpoint_every: int = 500
    """Steps between writes of checkpoints/last."""
    keep_every: int = 0
    """Steps between checkpoints that are kept, checkpoints/step-N. 0: none."""
    sample_every: int = 0
    """Steps between sample pictures during the run, samples/step-N.png. 0: at the end only."""
    num_samples: int = 80
    """Images in samples.png."""
    judge_samples: int = 0
    """Samples that are held against the real images at the end (figures.json); needs labels. 0: none."""
    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        for name in ("log_every", "checkpoint_every", "num_samples"):
            require(getattr(self, name) >= 1, f"logging.{name}", "at least 1", getattr(self, name))
        for name in ("validate_every", "keep_every", "sample_every"):
            require(getattr(self, name) >= 0, f"logging.{name}", "at least 0", getattr(self, name))
        some = self.judge_samples == 0 or self.judge_samples >= 2
        require(some, "logging.judge_samples", "0 or at least 2", self.judge_samples)


@dataclass
class Config:
    """Everything that a run is made from."""

    model: ModelConfig = field(default_factory=ModelConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    data: DataConfig = field(default_factory=DataConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)


def to_dict(config: Config) -> dict[str, Any]:
    """Plain dicts and lists, as YAML and JSON hold them."""
    sections = dataclasses.asdict(config)
    return {s: {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()} for s, values in sections.items()}
