"""What an exported file says about itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import metadata
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from autoreid.config import Config, Metric
from autoreid.errors import DataError

#: Steps before the network that an exported file does itself. none: it takes normalised images (B, 3, H, W) float32;
#: normalise: uint8 pictures (B, H, W, 3) of the network's size; resize: uint8 pictures (B, h, w, 3) of any size.
Preprocessing = Literal["none", "normalise", "resize"]
#: Order of the channels of the input.
Channels = Literal["RGB", "BGR"]
#: Number format of the weights and the computation.
ExportPrecision = Literal["float32", "float16"]


class Metadata(BaseModel):
    """The entries of `metadata_props` in an exported file.

    Attributes:
        autoreid_version: version of autoreid that wrote the file.
        network, network_options: `model.name`, and `model.options` as JSON; of a derived network with its genotype.
        height, width: size in pixels of the images that the network takes.
        metric: the distance that its embeddings were trained for.
    """

    model_config = ConfigDict(frozen=True)

    autoreid_version: str
    network: str
    network_options: str
    height: int
    width: int
    preprocessing: Preprocessing
    channels: Channels
    precision: ExportPrecision
    metric: Metric

    @classmethod
    def of(
        cls,
        config: Config,
        preprocessing: Preprocessing = "none",
        channels: Channels = "RGB",
        precision: ExportPrecision = "float32",
    ) -> Metadata:
        """Return the entries for the network of a config."""
        return cls(
            autoreid_version=metadata.version("autoreid"),
            network=config.model.name,
            network_options=json.dumps(config.model_dump(mode="json")["model"]["options"], sort_keys=True),
            height=config.data.height,
            width=config.data.width,
            preprocessing=preprocessing,
            channels=channels,
            precision=precision,
            metric=config.evaluation.metric,
        )

    @classmethod
    def read(cls, entries: Mapping[str, str], name: str) -> Metadata:
        """Return the entries of a file; raises DataError with the file's name if one is missing or wrong."""
        if "autoreid_version" not in entries:
            raise DataError(
                f"{name}: has no metadata of autoreid; export the checkpoint with python -m autoreid.export"
            )
        try:
            return cls.model_validate_strings(entries)
        except ValidationError as error:
            first = error.errors()[0]
            raise DataError(f"{name}: metadata {first['loc'][0]}: {first['msg']}") from error

    def entries(self) -> dict[str, str]:
        """Return the entries as text."""
        return {key: str(value) for key, value in self}

    @property
    def input_shape(self) -> tuple[int | str, ...]:
        """The shape of the input without the batch; names stand for any size."""
        if self.preprocessing == "none":
            return (3, self.height, self.width)
        return ("height", "width", 3) if self.preprocessing == "resize" else (self.height, self.width, 3)

    @property
    def size(self) -> str:
        """The size of the network's images, as a message shows it."""
        return f"{self.height}x{self.width}"
