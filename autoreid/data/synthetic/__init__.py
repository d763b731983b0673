"""Synthetic pedestrians: how they and their cameras look, and the data sets that are drawn of them."""
