"""The `osnet_ain` space: where OSNet has instance norm (OSNet-AIN, arXiv 1910.06827)."""
