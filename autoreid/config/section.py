"""The base class of all sections, and the types of their values."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]


def expand(path: str | Path) -> Path:
    """Return a path with ~ and environment variables replaced; those that do not exist stay.

    A shell replaces neither in `--output=~/x`, nor in a config.
    """
    return Path(os.path.expandvars(os.path.expanduser(path)))  # noqa: PTH111 (pathlib raises without a home folder)


def _expand(path: Path) -> Path:
    expanded = expand(path)
    if re.match(r"\$\w|\$\{|~", str(expanded)):  # elsewhere, they may be part of a name
        raise PydanticCustomError("path", "there is no such environment variable or home folder")
    return expanded


#: A file or folder; ~ and environment variables are expanded.
ExpandedPath = Annotated[Path, AfterValidator(_expand)]
#: How a network computes; its weights are float32 in each case.
Precision = Literal["float32", "tf32", "bfloat16"]
#: Distances between embeddings.
Metric = Literal["euclidean", "cosine"]


class Section(BaseModel):
    """A part of the config. Unknown keys and wrong types are errors, and a loaded config is immutable.

    A check over several keys raises ValueError with a message that begins with the key to change, relative to the
    section that checks.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    def changed_keys(self) -> list[str]:
        """Return the keys whose values are not the defaults."""
        fields = type(self).model_fields
        return [key for key, value in self if value != fields[key].default]


def first_duplicate(names: Sequence[str]) -> str | None:
    """Return the first name that appears more than once, or None."""
    return next((name for name in names if names.count(name) > 1), None)
