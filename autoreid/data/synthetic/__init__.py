"""Synthetic pedestrians: their appearance, the cameras, and data sets generated from them."""
