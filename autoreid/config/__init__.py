"""The typed, strict schema of a run; `autoreid.recipes` reads it from YAML.

Each section of a config is a class, and the docstrings of its keys are what `--help` prints.
"""

from __future__ import annotations

from autoreid.config.data import Data, SyntheticPeople
from autoreid.config.run import MAY_DIFFER, Checkpoint, Config, Distributed, Evaluation, Reporting
from autoreid.config.search import Cost, OneShot, Search, Temperature
from autoreid.config.section import Metric, Precision, Section, expand
from autoreid.config.spaces import (
    CELL_OPERATIONS,
    DEFAULT_CELL_OPERATIONS,
    Msinet,
    OsnetAin,
    ReidCell,
    SpaceSection,
)
from autoreid.config.training import METRIC_LEARNING, Losses, Model, Training

__all__ = [
    "CELL_OPERATIONS",
    "DEFAULT_CELL_OPERATIONS",
    "MAY_DIFFER",
    "METRIC_LEARNING",
    "Checkpoint",
    "Config",
    "Cost",
    "Data",
    "Distributed",
    "Evaluation",
    "Losses",
    "Metric",
    "Model",
    "Msinet",
    "OneShot",
    "OsnetAin",
    "Precision",
    "ReidCell",
    "Reporting",
    "Search",
    "Section",
    "SpaceSection",
    "SyntheticPeople",
    "Temperature",
    "Training",
    "expand",
]
