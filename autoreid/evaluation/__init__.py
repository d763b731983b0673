"""Retrieval evaluation: embed query and gallery, rank the gallery for every query and score the rankings."""

from autoreid.evaluation.cuhk03 import evaluate_single_shot
from autoreid.evaluation.features import extract_features, measure_retrieval
from autoreid.evaluation.mean import MeanRetrieval
from autoreid.evaluation.ranking import RetrievalResult, evaluate_distances, evaluate_retrieval
from autoreid.evaluation.reranking import rerank

__all__ = [
    "MeanRetrieval",
    "RetrievalResult",
    "evaluate_distances",
    "evaluate_retrieval",
    "evaluate_single_shot",
    "extract_features",
    "measure_retrieval",
    "rerank",
]
