"""Found genotypes, and random genotypes of the same size to compare them with."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from autoreid.errors import DataError
from autoreid.models import count_parameters
from autoreid.recipes import load_config
from autoreid.spaces.build import build_model, build_space
from autoreid.spaces.genotype import Genotype

#: Samples a genotype.
Sampler = Callable[[np.random.Generator], Genotype]
#: How many random genotypes the one nearest in size is chosen from.
_SAMPLES = 64
#: Relative difference of parameters up to which networks count as equally large.
_ALIKE = 0.005


class Found(NamedTuple):
    """A genotype and its search space.

    Attributes:
        sample: samples random genotypes of the space.
    """

    genotype: Genotype
    sample: Sampler


def read_found(source: Path) -> Found:
    """Read a genotype from its file, from the run folder of a search, or from the folder of a tournament.

    Random genotypes have the operations of the search if the source is a run folder, and else those of `sample_like`.

    Raises:
        DataError: there is no genotype; names the file.
        ConfigError: the config of the search cannot be read.
    """
    if not source.is_dir():
        return _of_file(source)
    result = source / "result.json"
    if not result.exists() and (source / "genotype.json").exists():
        return _of_file(source / "genotype.json")
    try:
        content = json.loads(result.read_bytes())
        genotype = Genotype.parse(json.dumps(content["genotype"]), f"{result}: genotype")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{result}: contains no genotype; expected the result of a finished search"
        ) from error
    return Found(genotype, build_space(load_config(source / "config.yaml").search).random_genotype)


def _of_file(path: Path) -> Found:
    genotype = Genotype.load(path)
    return Found(genotype, genotype.sample_like)


def random_of_size(found: Found, seed: int, options: Mapping[str, Any]) -> Genotype:
    """Sample a random genotype with about as many parameters as a found one.

    Of 64 samples, it is the first that differs by at most 0.5 %, or else the nearest.

    Args:
        seed: of the random genotypes.
        options: the options of the derived networks.
    """
    parameters = partial(_parameters, options=options)
    rng = np.random.default_rng(seed)
    wanted = parameters(found.genotype)
    best, least = found.genotype, math.inf
    for _ in range(_SAMPLES):
        sampled = found.sample(rng)
        difference = abs(parameters(sampled) / wanted - 1)
        if difference < least:
            best, least = sampled, difference
        if least < _ALIKE:
            break
    return best


def _parameters(genotype: Genotype, options: Mapping[str, Any]) -> int:
    with torch.device("meta"):
        return count_parameters(build_model("derived", 1, **{**options, "genotype": genotype}))
