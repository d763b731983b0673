"""Reading MATLAB files, in which some data sets store splits and annotations; requires scipy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autoreid.errors import ConfigError, DataError


def load_mat(path: Path) -> dict[str, Any]:
    """Return the variables of a MATLAB file (versions 4 to 7.2); arrays with one element become that element.

    Raises:
        ConfigError: scipy is not installed.
        DataError: the file does not exist or is broken.
    """
    try:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError
    except ImportError as error:
        raise ConfigError(f"{path}: reading this file requires scipy: pip install 'autoreid[mat]'") from error
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
        raise DataError(f"{path}: broken, or not a MATLAB file: {error}") from error
