"""Retrieval evaluation: embed query and gallery, rank the gallery for every query and score the rankings."""

from autoreid.evaluation.features import extract_features, measure_retrieval
from autoreid.evaluation.ranking import RetrievalResult, evaluate_distances, evaluate_retrieval

__all__ = [
    "RetrievalResult",
    "evaluate_distances",
    "evaluate_retrieval",
    "extract_features",
    "measure_retrieval",
]
