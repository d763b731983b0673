"""Retrieval evaluation: extract features, rank the gallery for each query and compute mAP, CMC and mINP."""

from autoreid.evaluation.features import extract_features, measure_retrieval
from autoreid.evaluation.mean import MeanRetrieval
from autoreid.evaluation.ranking import RetrievalResult, evaluate_distances, evaluate_retrieval
from autoreid.evaluation.reranking import rerank

__all__ = [
    "MeanRetrieval",
    "RetrievalResult",
    "evaluate_distances",
    "evaluate_retrieval",
    "extract_features",
    "measure_retrieval",
    "rerank",
]
