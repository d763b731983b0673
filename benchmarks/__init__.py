"""Scripts that measure this package; each runs by itself as `python benchmarks/NAME.py`."""
