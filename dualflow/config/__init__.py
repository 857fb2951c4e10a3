"""The configuration of a study, in sections.

Each rule of the workflow depends only on the sections it uses, so a changed value reruns only what depends on it.
"""

from dualflow.config.config import CEILINGS, Config, is_private, public_values, write_resolved
from dualflow.config.data import CohortConfig, SplitConfig, StudyConfig
from dualflow.config.groups import ImputeConfig
from dualflow.config.imaging import PreprocessConfig, ReviewConfig
from dualflow.config.learning import (
    AugmentConfig,
    BaselineConfig,
    ConvertConfig,
    Device,
    EvaluateConfig,
    ModelConfig,
    TrackingConfig,
    TrainConfig,
)
from dualflow.config.load import checked, load_config, parse_config
from dualflow.config.section import Section, dump_sections
from dualflow.config.tracking_uri import public_uri
from dualflow.config.training_values import training_values

__all__ = [
    "CEILINGS",
    "AugmentConfig",
    "BaselineConfig",
    "CohortConfig",
    "Config",
    "ConvertConfig",
    "Device",
    "EvaluateConfig",
    "ImputeConfig",
    "ModelConfig",
    "PreprocessConfig",
    "ReviewConfig",
    "Section",
    "SplitConfig",
    "StudyConfig",
    "TrackingConfig",
    "TrainConfig",
    "checked",
    "dump_sections",
    "is_private",
    "load_config",
    "parse_config",
    "public_uri",
    "public_values",
    "training_values",
    "write_resolved",
]
