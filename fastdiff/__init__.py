"""fastdiff: fast convolutional and diffusion models in PyTorch, on our own C++, CUDA and Triton kernels.

`fastdiff.ops` (functions) and `fastdiff.nn` (layers) are here at once; everything else loads where it is first used.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

from . import nn, ops
from .ops._precision import float32_precision, set_float32_precision

if TYPE_CHECKING:
    from . import config, data, diffusion, evaluation, models, training, visualization
    from .training import load

__version__ = _version("fastdiff")
_PACKAGES = ("config", "data", "diffusion", "evaluation", "models", "training", "visualization")
__all__ = [
    "__version__",
    "config",
    "data",
    "diffusion",
    "evaluation",
    "float32_precision",
    "load",
    "models",
    "nn",
    "ops",
    "set_float32_precision",
    "training",
    "visualization",
]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"{__name__}.{name}")
    if name == "load":
        from .training import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
