"""Imports go one way: each part of the package knows only itself and what stands before it."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "autoreid"
#: The parts that others build on, from the ground up; `config` imports nothing of the package. All other modules are
#: command lines, and may import any of them.
ORDER = (
    *(
        "config",
        "errors",
        "files",
        "seeding",
        "cli",
        "checkpoint",
        "yaml_values",
        "recipes",
        "architecture",
        "named_paths",
    ),
    *(
        "distributed",
        "layers",
        "models",
        "spaces",
        "networks",
        "data",
        "losses",
        "evaluation",
        "training",
        "embedder",
        "deployment",
        "search",
    ),
    *("reporting", "mirrors", "trials", "sweeps", "diagnosis", "commands"),
)
#: Who alone may import what.
ONLY = {
    "submitit": "slurm",
    "graphviz": "reporting",
    "tensorboardX": "reporting",
    "wandb": "mirrors",
    "mlflow": "mirrors",
}


def imported(file: Path) -> list[str]:
    """Full names of the modules that a file imports, wherever it does so."""
    names = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: a relative import"
            parts = [f".{alias.name}" for alias in node.names] if node.module == "autoreid" else [""]
            names += [f"{node.module}{part}" for part in parts]
    return names


@pytest.mark.parametrize("part", ORDER)
def test_a_part_knows_only_what_stands_before_it(part):
    folder, before = PACKAGE / part, ORDER[: ORDER.index(part) + 1]
    files = sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{part}.py"]
    names = [name.split(".") for file in files for name in imported(file)]
    assert {name[1] for name in names if name[0] == "autoreid"} <= {*before}


def test_every_folder_has_its_place():
    """`slurm` runs the commands, so it stands above all of them."""
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} <= {*ORDER, "slurm"}


@pytest.mark.parametrize(("module", "folder"), ONLY.items())
def test_one_folder_alone_imports_a_module(module, folder):
    files = [file for file in PACKAGE.rglob("*.py") if module in {n.split(".")[0] for n in imported(file)}]
    assert files, "nothing imports it: the rule holds nothing"
    assert {file.relative_to(PACKAGE).parts[0] for file in files} == {folder}
