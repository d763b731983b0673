"""MATLAB files, in which some data sets keep splits and annotations; read with scipy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autoreid.errors import ConfigError, DataError


def load_mat(path: Path) -> dict[str, Any]:
    """The variables of a file of MATLAB 4 to 7.2; arrays of one element are that element.

    Raises:
        ConfigError: scipy is not installed.
        DataError: there is no such file, or it is broken.
    """
    try:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError
    except ImportError as error:
        raise ConfigError(f"{path}: reading it needs scipy: pip install 'autoreid[mat]'") from error
    try:
        with path.open("rb") as file:
            return loadmat(file, squeeze_me=True)
    except OSError as error:
        raise DataError(f"{path}: cannot read the file: {error.strerror or error}") from error
    except (
        MatReadError,
        ValueError,
        TypeError,
        NotImplementedError,
        KeyError,
        IndexError,
        EOFError,
    ) as error:
        raise DataError(f"{path}: not a MATLAB file, or a broken one: {error}") from error
