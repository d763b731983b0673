"""The section `search`: the search space, the relaxation, and how the alphas are trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from autoreid.config.section import (
    Count,
    CountOrZero,
    Fraction,
    NonNegative,
    Positive,
    Precision,
    Section,
)
from autoreid.config.spaces import SpaceChoice
from autoreid.config.training import Losses

#: How alphas become mixing weights; those in SAMPLING leave candidates out of some passes.
RELAXATIONS = ("softmax", "gumbel", "gumbel_hard", "gdas", "drnas", "sdarts", "uniform", "fair")
SAMPLING = ("gumbel_hard", "gdas", "uniform", "fair")


class Temperature(Section):
    """Temperature of Gumbel-softmax: a high one mixes all candidates equally, a low one nearly picks one."""

    start: Positive = 10.0
    """Temperature at the start."""
    end: Positive = 1.0
    """Temperature at the end, and lower bound."""
    schedule: Literal["halving", "linear", "cosine"] = "halving"
    """halving: halve it after every `every_epochs` epochs; linear and cosine: lower it step by step over all epochs."""
    every_epochs: Count = 20
    """Epochs between two halvings."""
    reached_at: Annotated[float, Field(gt=0, le=1)] = 1.0
    """linear and cosine: share of the steps after which the temperature is at its end."""

    @model_validator(mode="after")
    def _check(self) -> Temperature:
        if self.end > self.start:
            raise ValueError("end: must not exceed start")
        if self.schedule == "halving" and self.reached_at != 1:
            raise ValueError(f"reached_at: {self.reached_at} needs schedule: linear or cosine, not halving")
        return self


class OneShot(Section):
    """Evolution of networks that have the supernet's weights (read_out one_shot)."""

    population: Annotated[int, Field(ge=2)] = 20
    """Networks in a generation; the better half are the parents of the next."""
    generations: Count = 5
    """Generations, the random first one included."""
    norm_batches: Count = 4
    """Batches of training images from which a network's running statistics are estimated before it is measured."""


class Cost(Section):
    """The cost of the derived network, for the alphas' loss and for the read-out."""

    measure: Literal["none", "parameters", "macs", "latency"] = "none"
    """What is counted: nothing; parameters in millions, without the classifier; multiply-accumulates in billions
    (GMACs) for an image; or the milliseconds in which the device of rank 0 embeds an image."""
    weight: NonNegative = 0.0
    """Factor of the expected cost, as a multiple of the mean cost of random genotypes, in the alphas' loss."""
    limit: Positive | None = None
    """Cost that the genotype must not exceed, in the unit of `measure`; null for none."""
    options: dict[str, int | float | bool | str | tuple[int, ...]] = {}  # noqa: RUF012 (pydantic copies it)
    """Options of the derived network whose cost counts, like model.options; its other sizes are those of the search."""

    @model_validator(mode="after")
    def _check(self) -> Cost:
        if self.measure == "none":
            for key in self.changed_keys():
                raise ValueError(f"{key}: needs measure: parameters, macs or latency")
        for key in ("genotype", "num_identities"):
            if key in self.options:
                raise ValueError(f"options.{key}: must not be set; the search sets it for each network")
        return self


class Search(SpaceChoice):
    """The search space, the relaxation, and how the alphas are trained."""

    activation_checkpointing: Literal["none", "cell"] = "none"
    """What the backward pass recomputes to save memory: nothing, or whole cells (in osnet_ain: blocks)."""
    relaxation: Literal[RELAXATIONS] = "softmax"  # type: ignore[valid-type]
    """How alphas become mixing weights. softmax: DARTS. gumbel: Gumbel-softmax; gumbel_hard: straight-through; gdas:
    straight-through with the sampled candidates only. drnas: samples of Dirichlet distributions. sdarts: softmax of
    perturbed alphas. uniform, fair: train random networks for read_out one_shot, without alphas."""
    temperature: Temperature = Temperature()
    level: Literal["bilevel", "single"] = "bilevel"
    """bilevel: alphas learn from images of their own; single: from the weights' images and backward pass."""
    alphas_see: Literal["images", "cameras", "identities", "domains"] = "images"
    """What the alphas' images at level bilevel differ in from those of the weights. images: other images of each
    identity; cameras: other cameras of each identity; identities: partly other identities (MSINet); domains: another
    source, in each epoch the next one of data.sources."""
    order: Literal["first", "second", "exact"] = "second"
    """Gradient of the alphas at level bilevel: first order; second by finite differences (DARTS eq. 8); or exact."""
    second_order_precision: Precision = "float32"
    """Like training.precision, for the passes that compute the gradient of the alphas with order second or exact.
    These depend on small differences between gradients, which tf32 and bfloat16 round away. Order first uses
    training.precision."""
    warmup_epochs: CountOrZero = 0
    """Number of first epochs that train only the weights."""
    losses: Losses | None = None
    """Loss for the alphas' images at level bilevel; null for the loss of the weights. Keys that are left out have their
    defaults, not the values of the weights' loss."""
    alpha_optimizer: Literal["adam", "sgd"] = "adam"
    """Optimiser of the alphas; sgd has the momentum of the weights."""
    alpha_learning_rate: Positive = 3e-4
    """Learning rate of the alphas at the start."""
    alpha_schedule: Literal["constant", "cosine", "weights"] | None = None
    """Learning rate of the alphas: constant; cosine to 0 over the epochs after the warm-up; or that of the weights,
    scaled. null is constant for adam and weights for sgd."""
    alpha_betas: tuple[Fraction, Fraction] = (0.5, 0.999)
    """Betas of Adam for the alphas."""
    alpha_weight_decay: NonNegative = 1e-3
    """Weight decay of the alphas."""
    read_out: Literal["argmax", "perturbation", "one_shot"] = "argmax"
    """How the genotype is read at the end. argmax: the largest alphas. perturbation: the candidates whose removal from
    the mixture hurts the held-out mAP most. one_shot: the network with the best held-out mAP in a supernet that
    relaxation uniform or fair has trained, by evolution."""
    one_shot: OneShot = OneShot()
    cost: Cost = Cost()

    @model_validator(mode="after")
    def _check(self) -> Search:
        if self.level == "single" and self.alphas_see != "images":
            raise ValueError(
                f"alphas_see: {self.alphas_see} needs level: bilevel; at level single, alphas learn from the images of "
                f"the weights"
            )
        if self.level == "single" and self.losses is not None:
            raise ValueError(
                "losses: need level: bilevel; at level single, alphas learn from the loss of the weights"
            )
        if self.reid_cell.partial_channels > 1 and self.relaxation != "softmax":
            raise ValueError(
                f"reid_cell.partial_channels: edges are weighted by relaxation softmax, not {self.relaxation}"
            )
        paths = self.relaxation in ("uniform", "fair")
        if paths != (self.read_out == "one_shot"):
            raise ValueError(
                f"read_out: {self.read_out} and relaxation: {self.relaxation} cannot be combined; one_shot reads "
                f"supernets that uniform or fair has trained, and nothing else reads them"
            )
        if paths and self.level != "single":
            raise ValueError(
                f"level: must be single with relaxation {self.relaxation}, which trains no alphas"
            )
        if paths and self.cost.weight:
            raise ValueError(
                f"cost.weight: must be 0 with relaxation {self.relaxation}, which trains no alphas; use cost.limit"
            )
        return self

    def unused(self) -> dict[str, str]:
        """Return the keys that were set but have no effect, each with the key that would have to change."""
        gumbel = self.relaxation in ("gumbel", "gumbel_hard", "gdas")
        second = self.level == "bilevel" and self.order != "first"
        needs = {
            "temperature": (gumbel, f"relaxation: {self.relaxation}"),
            "order": (self.level == "bilevel", f"level: {self.level}"),
            "second_order_precision": (second, f"order: {self.order}, level: {self.level}"),
            "alpha_betas": (self.alpha_optimizer == "adam", f"alpha_optimizer: {self.alpha_optimizer}"),
            "one_shot": (self.read_out == "one_shot", f"read_out: {self.read_out}"),
        }
        changed = self.changed_keys()
        return {key: other for key, (used, other) in needs.items() if key in changed and not used}
