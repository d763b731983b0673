"""Losses that a re-identification network is trained with."""

from autoreid.losses.retrieval import LossTerms, RetrievalLoss
from autoreid.losses.triplet import batch_hard_triplet

__all__ = ["LossTerms", "RetrievalLoss", "batch_hard_triplet"]
