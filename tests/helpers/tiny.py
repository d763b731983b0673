"""A search on synthetic people that is small enough to run many times in tests."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

from autoreid.config import Config
from autoreid.recipes import load_config
from tests.helpers.people import place_people

TINY: dict[str, Any] = {
    "task_name": "tiny",
    "data": {
        "sources": ["people"],
        "synthetic": {
            "people": {
                "train_identities": 12,
                "test_identities": 4,
                "images_per_identity": 8,
                "cameras": 2,
                "distractors": 2,
                "junk": 2,
                "height": 48,
                "width": 24,
            }
        },
        "height": 32,
        "width": 16,
        "batch_size": 16,
        "images_per_identity": 4,
        "held_out_fraction": 0.2,
        "padding": 2,
        "workers": 0,
    },
    "search": {
        "reid_cell": {"stem": "darts", "channels": 2, "cells_per_stage": [1, 1], "nodes": 2, "parts": 2},
        "alpha_learning_rate": 0.02,
        "order": "first",
    },
    "losses": {"mine_across_ranks": True, "normalise": False},
    "training": {"epochs": 2, "learning_rate": 0.05},
    "distributed": {"device": "cpu", "timeout_seconds": 60.0},
    "reporting": {"every_seconds": 0.1, "every_steps": 1},
}


#: Changes for a search in OSNet-AIN's space, single-level with Gumbel-softmax as published.
OSNET: dict[str, Any] = {
    "search": {
        "space": "osnet_ain",
        "osnet_ain": {"width": 0.25},
        "relaxation": "gumbel",
        "temperature": {"start": 4.0, "every_epochs": 1},
        "level": "single",
        "alpha_optimizer": "sgd",
        "alpha_learning_rate": 0.1,
        "alpha_weight_decay": 0.0,
    },
    "data__width": 32,
}

#: The same, but bilevel and with one sampled candidate per block.
OSNET_HARD: dict[str, Any] = OSNET | {
    "search__level": "bilevel",
    "search__order": "first",
    "search__relaxation": "gumbel_hard",
}

#: Changes for a search in MSINet's space.
MSINET: dict[str, Any] = {
    "search": {
        "space": "msinet",
        "msinet": {"width": 0.25},
        "order": "first",
        "alpha_learning_rate": 0.02,
    },
}

#: Changes for a training of the smallest fixed network.
OSNET_TRAINING: dict[str, Any] = {
    "task": "train",
    "model": {"name": "osnet_x0_25"},
    "data__held_out_fraction": 0.0,
    "evaluation__split": "test",
    "data__height": 64,
    "data__width": 32,
}

#: Changes that make it a training of a derived network, measured on held-out identities.
DERIVED_TRAINING: dict[str, Any] = {
    "task": "train",
    "task_name": "trained",
    "model": {
        "name": "derived",
        "options": {"channels": 4, "cells_per_stage": [1, 1], "parts": 2, "stem": "darts"},
    },
    "evaluation__metric": "cosine",
}


def write_tiny(folder: Path, **changes: Any) -> Path:
    """Write a config file for a run in a folder, and return its path.

    Args:
        changes: values by dotted key, with __ instead of dots.
    """
    tree = yaml.safe_load(yaml.safe_dump(TINY))
    tree["output_dir"], tree["genotype_dir"] = str(folder / "runs"), str(folder / "genotypes")
    tree["data"]["root"] = str(folder)
    for key, value in changes.items():
        *sections, last = key.split("__")
        inner = tree
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = copy.deepcopy(value)
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def tiny_config(folder: Path, **changes: Any) -> Config:
    """Write and load the config file, and generate its synthetic people."""
    config = load_config(write_tiny(folder, **changes))
    place_people(config.data)
    return config
