"""Retrieval evaluation: rank a gallery for every query and score the rankings."""

from autoreid.evaluation.ranking import RetrievalResult, evaluate_retrieval

__all__ = ["RetrievalResult", "evaluate_retrieval"]
