"""The network that weights of other programs are for, as named on a command line."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from autoreid.config import Config
from autoreid.errors import ConfigError
from autoreid.recipes import parse_config
from autoreid.yaml_values import parse_value


@dataclass(frozen=True)
class Architecture:
    """The network that weights of another program are for, because their file does not say it.

    Attributes:
        name: as in `model.name`.
        options: as in `model.options`.
        height, width: size in pixels to which images are resized.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    height: int = 256
    width: int = 128

    def config(self) -> Config:
        """Return a config with this network and the defaults; raises ConfigError if a value is not valid."""
        data = {"root": ".", "height": self.height, "width": self.width}
        model = {"name": self.name, "options": self.options}
        tree = {"task": "train", "task_name": "weights", "data": data, "model": model}
        return parse_config(json.dumps(tree), f"network {self.name}")


def add_architecture_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `architecture_of` reads."""
    group = parser.add_argument_group("weights of other programs, such as torchreid and torchvision")
    group.add_argument("--model", metavar="NAME", help="network that the weights are for, such as osnet_x1_0")
    group.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="option of the network, such as last_stride=1 of resnet50; may be repeated",
    )
    group.add_argument("--size", metavar="HEIGHTxWIDTH", help="size of the images (default: 256x128)")


def architecture_of(arguments: argparse.Namespace) -> Architecture | None:
    """Return the network that the command line names; raises ConfigError if an option is wrong."""
    if arguments.model is None:
        for option in ("option", "size"):
            if getattr(arguments, option):
                raise ConfigError(f"--{option}: requires --model")
        return None
    options = {}
    for text in arguments.option:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise ConfigError(f"--option {text}: must be of the form KEY=VALUE")
        options[key] = parse_value(value, f"--option {key}")
    size = re.fullmatch(r"(\d+)x(\d+)", arguments.size or "256x128")
    if size is None:
        raise ConfigError(f"--size {arguments.size}: must be of the form HEIGHTxWIDTH, such as 256x128")
    return Architecture(arguments.model, options, int(size[1]), int(size[2]))
