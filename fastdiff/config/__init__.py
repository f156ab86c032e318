"""The configuration of a run.

Dataclasses hold the only defaults; `configs/*.yaml`, which ship with the package, and the command line hold differences.
"""

from .build import build_model, build_scheduler
from .parser import config_parser, load_config, named_config
from .schema import Config, DataConfig, DiffusionConfig, LoggingConfig, ModelConfig, TrainingConfig, to_dict

__all__ = [
    "Config",
    "DataConfig",
    "DiffusionConfig",
    "LoggingConfig",
    "ModelConfig",
    "TrainingConfig",
    "build_model",
    "build_scheduler",
    "config_parser",
    "load_config",
    "named_config",
    "to_dict",
]
