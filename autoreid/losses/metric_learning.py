"""Losses of pytorch-metric-learning as terms."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from autoreid.config import METRIC_LEARNING, Losses
from autoreid.distributed import gather
from autoreid.errors import ConfigError
from autoreid.layers.autocast import without_autocast
from autoreid.losses.term import Outputs, Term
from autoreid.models import OutputSizes


class MetricLearning(Term):
    """A loss of pytorch-metric-learning, of the embeddings before the neck.

    With `losses.mine_across_ranks`, each rank computes the loss of the global batch. The average over the ranks and its
    gradients are then those of a single process.

    Losses with a classifier or proxies are told the number of identities and the size of the embeddings. They are
    trained with the head of the network.

    Args:
        name: name of the class in pytorch_metric_learning.losses.
        settings: the section `losses` of the config, with the options of the class.

    Raises:
        ConfigError: the library is not installed, or it has no such loss.
    """

    labels: Tensor
    loss: nn.Module

    def __init__(self, name: str, settings: Losses) -> None:
        super().__init__()
        self.name, self.loss_type = name, _loss_type(name)
        self.options = dict(settings.metric_learning.get(name, {}))
        self.across_ranks = settings.mine_across_ranks

    def prepare(self, sizes: OutputSizes, labels: Tensor) -> None:
        """Create the loss; raises ConfigError if an option does not exist, is missing or has an impossible value."""
        own: dict[str, Any] = {"num_classes": len(labels), "embedding_size": sizes.embedding}
        known = _parameters(self.loss_type)
        options = {key: value for key, value in own.items() if key in known} | self.options
        try:
            self.loss = self.loss_type(**options)
        except (TypeError, ValueError, AssertionError) as error:
            raise ConfigError(f"losses.metric_learning.{self.name} = {self.options}: {error}") from error
        # DynamicSoftMarginLoss keeps its histogram in an attribute; as a buffer, it is saved and resumed.
        for key, value in list(vars(self.loss).items()):
            if isinstance(value, Tensor):
                delattr(self.loss, key)
                self.loss.register_buffer(key, value)
        self.register_buffer("labels", labels, persistent=False)
        # Others compare images with proxies or the weights of a classifier.
        self.compares_images = not [*self.loss.parameters()]

    def forward(self, outputs: Outputs, labels: Tensor) -> Tensor:
        """Compute the term, a scalar; raises ConfigError if the loss cannot be computed for such a batch."""
        embeddings = outputs.embedding
        embeddings = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
        if self.across_ranks:
            embeddings, labels = gather(embeddings), gather(labels)
        with without_autocast(embeddings.device.type):
            try:
                # Losses with a classifier need labels from 0 to N - 1.
                value: Tensor = self.loss(embeddings, torch.searchsorted(self.labels, labels))
            except (
                ValueError,
                AssertionError,
            ) as error:  # such as that of VICRegLoss, which needs pairs of images
                raise ConfigError(
                    f"losses.terms: {METRIC_LEARNING}{self.name} cannot be computed: {error}; use another loss"
                ) from error
        return value


def _parameters(loss_type: type[nn.Module]) -> set[str]:
    """Return the parameters of a class and its base classes; some classes pass on those that they do not name."""
    bases = (base for base in loss_type.__mro__ if "__init__" in vars(base))
    return {name for base in bases for name in inspect.signature(vars(base)["__init__"]).parameters}


def _loss_type(name: str) -> type[nn.Module]:
    try:
        from pytorch_metric_learning import losses
    except ImportError as error:
        raise ConfigError(
            f"losses.terms: {METRIC_LEARNING}{name} requires pytorch-metric-learning: pip install "
            f"'autoreid[metric-learning]'"
        ) from error
    found = vars(losses).get(name)
    if not (isinstance(found, type) and issubclass(found, losses.BaseMetricLossFunction)):
        names = [
            key for key, value in vars(losses).items() if isinstance(value, type) and key.endswith("Loss")
        ]
        nearest = ", ".join(difflib.get_close_matches(name, names, n=3, cutoff=0))
        raise ConfigError(
            f"losses.terms: pytorch-metric-learning has no loss {name!r}; did you mean one of {nearest}?"
        )
    return found
