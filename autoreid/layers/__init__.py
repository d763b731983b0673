"""Building blocks of networks: norms, pooling, 1×1 convolutions, recomputation, heads. Imports no network or space."""
