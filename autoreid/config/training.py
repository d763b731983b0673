"""The sections `model`, `losses` and `training`: the network to train, its loss, and how weights are trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from autoreid.config.section import (
    Count,
    CountOrZero,
    ExpandedPath,
    Fraction,
    NonNegative,
    Positive,
    Precision,
    Section,
)

#: What the names of terms from pytorch-metric-learning begin with, in `losses.terms`.
METRIC_LEARNING = "metric_learning:"


class Model(Section):
    """The network that `task: train` trains."""

    name: str = "resnet50"
    """Network: resnet50, pcb, mgn, osnet_x1_0, osnet_ain_x1_0, msinet_x1_0, ...; derived, built from a genotype; or
    timm:NAME, a network of timm."""
    weights: ExpandedPath | None = None
    """Checkpoint to start from: published weights (of torchvision, torchreid, IBN-Net, MSINet or timm), or weights of a
    run."""
    options: dict[str, int | float | bool | str | tuple[int, ...]] = {}  # noqa: RUF012 (pydantic copies it)
    """Options of the network, such as {last_stride: 1}; for derived {genotype: FILE, channels: 48, ...}."""


class Losses(Section):
    """The retrieval loss: λ·cross-entropy + (1 - λ)·triplet loss + further terms."""

    classification_weight: Fraction = 0.5
    """λ."""
    triplet_weight: NonNegative | None = None
    """Weight of the triplet loss; null for 1 - λ."""
    margin: NonNegative | None = 0.3
    """Margin of the triplet loss; null for the soft margin."""
    mining: Literal["hard", "weighted"] = "hard"
    """Positives and negatives of the triplet loss. hard: the hardest of each anchor; weighted: all of them, weighted by
    how hard they are (AGW)."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Label smoothing of the cross-entropy."""
    softmax: Literal["linear", "cosface", "arcface", "circle"] = "linear"
    """What the cross-entropy classifies. linear: the logits of a linear classifier; the others: cosines of the
    angles θ to a vector of each identity, with a margin for the image's own identity. cosface: cos θ - margin;
    arcface: cos(θ + margin); circle: Circle loss. Only in task: train."""
    softmax_scale: Positive = 64.0
    """Factor of the cosines, if softmax is not linear."""
    softmax_margin: Fraction = 0.35
    """Margin of cosface, arcface (in radians) or circle."""
    auxiliary_weight: NonNegative = 0.4
    """Weight of the cross-entropy of the auxiliary head, for derived networks that have one."""
    mine_across_ranks: bool = False
    """Look for hard positives and negatives in the global batch instead of in each rank's share."""
    normalise: bool | None = None
    """Compute the triplet loss on embeddings of length 1; null does so in searches. On raw embeddings, mixing weights
    change the loss through the length of the embedding alone."""
    terms: dict[str, NonNegative] = {}  # noqa: RUF012 (pydantic copies it)
    """Weights of further terms of the loss, by their names in autoreid.losses.TERMS. memory: cross-entropy of the
    similarities to a moving centre of each identity (MSINet). alignment: spatial alignment of the images of a batch,
    for other domains (MSINet); only in task: train. metric_learning:NAME: the loss NAME of pytorch-metric-learning,
    such as metric_learning:MultiSimilarityLoss; only in task: train."""
    metric_learning: dict[str, dict[str, int | float | bool | str]] = {}  # noqa: RUF012 (pydantic copies it)
    """Options of terms from pytorch-metric-learning, such as {MultiSimilarityLoss: {alpha: 2.0, base: 0.5}}."""
    memory_temperature: Positive = 0.05
    """Temperature of the term memory: similarities are divided by it."""
    memory_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of its old centre that an identity keeps in the term memory, for each of its images."""
    alignment_negatives: bool = True
    """Whether the term alignment also compares images of different identities."""

    @model_validator(mode="after")
    def _check(self) -> Losses:
        for key in self.changed_keys():
            term = key.partition("_")[0]
            if key.startswith("softmax_") and self.softmax == "linear":
                raise ValueError(
                    f"{key}: needs softmax: cosface, arcface or circle; a linear one has no margin"
                )
            if term in ("memory", "alignment") and term not in self.terms:
                raise ValueError(f"{key}: needs the term {term}, such as terms: {{{term}: 1.0}}")
        for name in self.metric_learning:
            if METRIC_LEARNING + name not in self.terms:
                raise ValueError(
                    f"metric_learning.{name}: needs the term, such as terms: {{{METRIC_LEARNING}{name}: 1.0}}"
                )
        if not any((self.own_weights() | self.terms).values()):
            raise ValueError("terms: need a weight above 0, because no other part of the loss has one")
        return self

    def own_weights(self) -> dict[str, float]:
        """Return the weights of the cross-entropy and the triplet loss, by the names of the terms."""
        share, triplet = self.classification_weight, self.triplet_weight
        return {"classification": share, "triplet": 1 - share if triplet is None else triplet}

    @property
    def has_triplets(self) -> bool:
        """Whether the triplet loss has a weight."""
        return self.own_weights()["triplet"] > 0

    def in_search(self) -> Losses:
        """The settings with the defaults of a search."""
        return self.model_copy(update={"normalise": True}) if self.normalise is None else self


class Training(Section):
    """How weights are trained."""

    epochs: Count = 50
    """Number of epochs; an epoch is a pass over the images that train the weights."""
    optimizer: Literal["sgd", "adam", "amsgrad", "adamw"] = "sgd"
    """sgd: SGD with momentum; adam: Adam; amsgrad: the AMSGrad variant of Adam; adamw: Adam with decoupled weight
    decay. A search always uses sgd."""
    learning_rate: Positive = 0.025
    """Learning rate at the start."""
    schedule: Literal["cosine", "step"] = "cosine"
    """cosine: lower the learning rate step by step to the final one; step: multiply it by `decay` at each milestone."""
    final_learning_rate: NonNegative = 0.001
    """Learning rate at the end of the cosine schedule."""
    flat_epochs: CountOrZero = 0
    """Epochs at the full learning rate before the cosine schedule begins to lower it."""
    milestones: tuple[Count, ...] = ()
    """Epochs after which the step schedule decays."""
    decay: Positive = 0.1
    """Factor of the step schedule."""
    warmup_epochs: CountOrZero = 0
    """Epochs over which the learning rate grows linearly to its scheduled value."""
    backbone_scale: Fraction = 1.0
    """Learning rate of everything but the head, as a fraction of the head's."""
    frozen_epochs: CountOrZero = 0
    """Number of first epochs that train only the head."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD."""
    nesterov: bool = False
    """Use Nesterov momentum."""
    weight_decay: NonNegative = 3e-4
    """Weight decay of the weights; that of the alphas is search.alpha_weight_decay."""
    accumulation: Count = 1
    """Micro-batches into which each rank divides its share; each has its own batch statistics and triplets."""
    gradient_clip: Positive | None = 5.0
    """Maximum norm of the weights' gradient; null for no clipping."""
    precision: Precision = "tf32"
    """float32: IEEE single precision. tf32: as float32, but GPUs round the factors of convolutions and matrix products
    to 10 bits, which is much faster and hardly less accurate; CPUs do not round. bfloat16: autocast, with 7 bits,
    which also takes less memory. Weights, alphas and losses are float32 in each case."""
    channels_last: bool = False
    """Use the channels-last memory layout, which convolutions on GPUs prefer."""
    compile: bool = False
    """Compile the forward and backward passes that train the weights: minutes at the start, then faster steps."""
    cuda_graphs: bool = False
    """Replay the passes that train the weights as CUDA graphs and, if search.order is first, those that train the
    alphas. This only saves the host's launches, so results stay the same. Each captured pass keeps its memory."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of an exponential moving average of the weights, which is then evaluated and saved; null for none."""

    @model_validator(mode="after")
    def _check(self) -> Training:
        if self.schedule == "cosine" and self.final_learning_rate > self.learning_rate:
            raise ValueError("final_learning_rate: must not exceed learning_rate")
        if self.flat_epochs and (self.schedule != "cosine" or self.flat_epochs >= self.epochs):
            raise ValueError(
                f"flat_epochs: {self.flat_epochs} needs schedule: cosine and more epochs than that, not "
                f"{self.schedule} and {self.epochs}"
            )
        if self.cuda_graphs and self.compile:
            raise ValueError("cuda_graphs: true cannot be combined with compile: true; choose one of them")
        if self.cuda_graphs and self.accumulation > 1:
            raise ValueError(
                f"cuda_graphs: true needs accumulation: 1, not {self.accumulation}; a replay overwrites the gradients "
                f"of the micro-batch before"
            )
        if self.cuda_graphs and self.frozen_epochs:
            raise ValueError("cuda_graphs: true needs frozen_epochs: 0; a captured pass cannot be frozen")
        return self

    def unused(self) -> dict[str, str]:
        """Return the keys that were set but have no effect, each with the key that would have to change."""
        optimizer, schedule = f"optimizer: {self.optimizer}", f"schedule: {self.schedule}"
        needs = {
            "momentum": (self.optimizer == "sgd", optimizer),
            "nesterov": (self.optimizer == "sgd", optimizer),
            "final_learning_rate": (self.schedule == "cosine", schedule),
            "milestones": (self.schedule == "step", schedule),
            "decay": (self.schedule == "step", schedule),
        }
        changed = self.changed_keys()
        return {key: other for key, (used, other) in needs.items() if key in changed and not used}
