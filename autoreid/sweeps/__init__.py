"""Sweeps: runs of one recipe with each combination of several values of some keys."""
