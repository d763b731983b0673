"""The genotypes of all spaces by name. Reading them does not need PyTorch."""

from __future__ import annotations

from autoreid.spaces.genotype import Genotype
from autoreid.spaces.msinet.genotype import MsinetGenotype
from autoreid.spaces.osnet_ain.genotype import OsnetAinGenotype
from autoreid.spaces.reid_cell.genotype import CellGenotype

GENOTYPES: dict[str, type[Genotype]] = {
    "reid_cell": CellGenotype,
    "osnet_ain": OsnetAinGenotype,
    "msinet": MsinetGenotype,
}
