"""Data sets, synthetic people, transforms, the identity-balanced sampler and data loaders."""
