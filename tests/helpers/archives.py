"""Archives of folders."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path


def pack(folder: Path, archive: Path) -> Path:
    """Pack the contents of a folder; the archive's suffix decides its format."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            for path in files:
                file.write(path, path.relative_to(folder))
    else:
        with tarfile.open(archive, "w:" + archive.suffix[1:].replace("tar", "")) as file:
            for path in files:
                file.add(path, path.relative_to(folder))
    return archive
