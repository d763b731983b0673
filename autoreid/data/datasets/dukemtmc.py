"""DukeMTMC-reID (Ristani et al., ECCV Workshops 2016; Zheng et al., ICCV 2017), in the layout of Market-1501.

File names are such as 0005_c2_f0046985.jpg. The gallery also shows 408 people who were seen by one camera only; they
have identities too.
"""

from __future__ import annotations

from autoreid.data.datasets.benchmark import Benchmark, Counts
from autoreid.data.datasets.market1501 import read_market1501

DUKEMTMC = Benchmark(
    ("dukemtmc", "DukeMTMC-reID", "dukemtmc-reid", "dukemtmcreid"),
    read_market1501,
    {"train": Counts(702, 16_522, 8), "query": Counts(702, 2_228, 8), "gallery": Counts(1_110, 17_661, 8)},
    people="dukemtmc",
)
