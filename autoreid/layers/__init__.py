"""Building blocks of networks: norms, pooling, 1×1 products, recomputation, heads. Knows no network, space or run."""
