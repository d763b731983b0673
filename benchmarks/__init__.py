"""Scripts that measure this package: `python benchmarks/NAME.py`."""
