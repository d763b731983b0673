"""The `msinet` space: how the two branches of a cell interact (MSINet, arXiv 2303.07065)."""
