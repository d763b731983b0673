"""What benchmarks/search_step.py compares computes the same."""

from __future__ import annotations

import pytest
import torch

from benchmarks.search_step import FUSED, ORACLE, SIZES, variants

QUICK = [name for name in SIZES if "quickstart" in name]


def test_each_space_has_a_quick_size():
    assert len({SIZES[name].search.space for name in QUICK}) == 3


@pytest.mark.parametrize("name", QUICK)
def test_all_variants_of_a_supernet_give_its_embedding(name):
    nets = variants(SIZES[name]._replace(batch=4, height=64, width=32), compiled=False)
    images = torch.randn(4, 3, 64, 32)
    with torch.no_grad():
        found = {name: net(images, mixing)[0] for name, (net, mixing) in nets.items()}
    for variant in (FUSED, "recomputing"):
        torch.testing.assert_close(found[variant], found[ORACLE], rtol=1e-3, atol=1e-3)
