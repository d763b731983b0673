"""A whole run: its other sections, and the checks that need several sections."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, model_validator

from autoreid.config.data import Data
from autoreid.config.search import SAMPLING, Search
from autoreid.config.section import Count, CountOrZero, ExpandedPath, Metric, Positive, Section
from autoreid.config.training import METRIC_LEARNING, Losses, Model, Training

#: Numbers such as 1e-3, which YAML 1.1 reads as text. Configs read them as numbers.
EXPONENTIAL = re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
#: Numbers such as 010, which YAML 1.1 reads as 8, and 08, which it reads as text. Configs read them as decimal.
DECIMAL = re.compile(r"^[-+]?[0-9][0-9_]*$")


#: Keys that may change when a run resumes: they do not affect what it computes. distributed.deterministic is not among
#: them, because the stored config must be true for all steps of the run.
MAY_DIFFER = (
    "output_dir",
    "genotype_dir",
    "data.root",
    "data.cache",
    "data.workers",
    "evaluation.batch_size",
    "search.activation_checkpointing",
    "training.compile",
    "training.cuda_graphs",
    "distributed.device",
    "distributed.digest_every_steps",
    "distributed.timeout_seconds",
    "distributed.cudnn_benchmark",
    "distributed.expandable_segments",
    "checkpoint.every_steps",
    "checkpoint.keep_last",
    "reporting.every_seconds",
    "reporting.every_steps",
)


class _Dumper(yaml.SafeDumper):
    """Quotes texts that look like such numbers, for example a task name 1e3."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENTIAL, list("-+0123456789"))
_Dumper.add_implicit_resolver("tag:yaml.org,2002:int", DECIMAL, list("-+0123456789"))


class Evaluation(Section):
    """How retrieval is evaluated."""

    every_epochs: Count = 1
    """Evaluate after every this many epochs, and after the last one."""
    split: Literal["held_out", "test"] = "held_out"
    """held_out: identities kept out of the training set; test: the benchmark's own query and gallery."""
    metric: Metric = "euclidean"
    """Distance between embeddings."""
    keep_same_camera: bool = False
    """Count gallery images of the query's person by the query's camera as matches, for data from a single camera;
    Market-1501's protocol ignores them. They are easier to find, so results are not comparable with published ones."""
    batch_size: Count = 128
    """Images that a rank embeds at once."""


class Distributed(Section):
    """Devices, and how ranks work together."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to compute on; auto uses a GPU if there is one."""
    share_batch_statistics: bool = True
    """Compute batch statistics over the global batch, so that results do not depend on the number of ranks."""
    digest_every_steps: Count = 50
    """Compare the alphas of all ranks after every this many steps."""
    timeout_seconds: Positive = 600.0
    """How long a rank waits for the other ranks before it fails."""
    cudnn_benchmark: bool = True
    """Let cuDNN time its algorithms for each new shape and keep the fastest; a run has few shapes, so this pays."""
    expandable_segments: bool = True
    """Let PyTorch's blocks of GPU memory grow, which reduces fragmentation at no cost in time. The environment
    variable PYTORCH_CUDA_ALLOC_CONF, if set, takes precedence."""
    deterministic: bool = False
    """Make runs with equal seeds on GPUs of one kind, and resumed runs, agree bit for bit. This is slower and switches
    cudnn_benchmark off. A run with an operation that cannot be deterministic is refused."""


class Checkpoint(Section):
    """When checkpoints are saved, and how many are kept."""

    every_steps: Count = 500
    """Save after every this many steps, in addition to the end of each epoch."""
    keep_last: Count = 2
    """Number of latest checkpoints to keep, in addition to the best."""


class Reporting(Section):
    """How often a run reports its progress."""

    every_seconds: Positive = 30.0
    """Seconds between two progress lines in the log."""
    every_steps: Count = 20
    """Steps between two points of the loss curves in TensorBoard."""


class Config(Section):
    """A run."""

    task: Literal["search", "train"] = "search"
    """search: search for a genotype; train: train the network of section `model`."""
    # A file system takes 255 bytes in a name, and other commands add to this one.
    task_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)]
    """Name of the run's folders; a second run with the same name resumes the first."""
    seed: CountOrZero = 0
    """Random seed."""
    output_dir: ExpandedPath = Path("runs")
    """Folder of the run folders."""
    genotype_dir: ExpandedPath = Path("searched_genotypes")
    """Folder of the genotypes and their drawings."""
    data: Data
    search: Search = Search()
    model: Model = Model()
    losses: Losses = Losses()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    distributed: Distributed = Distributed()
    checkpoint: Checkpoint = Checkpoint()
    reporting: Reporting = Reporting()

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.data.batch_size % self.data.images_per_identity:
            raise ValueError(
                f"data.batch_size: {self.data.batch_size} is not a multiple of "
                f"data.images_per_identity ({self.data.images_per_identity})"
            )
        self._check_triplets()
        if self.task == "search":
            self._check_search()
        elif "alignment" in self.losses.terms and (self.training.compile or self.training.cuda_graphs):
            key = "compile" if self.training.compile else "cuda_graphs"
            raise ValueError(
                f"losses.terms: alignment needs training.{key}: false; it reads a feature map inside the network"
            )
        elif self.training.cuda_graphs and self.model.options.get("drop_path"):
            raise ValueError(
                "training.cuda_graphs: true needs model.options.drop_path: 0; it grows with each epoch, but a "
                "captured pass keeps its first value"
            )
        self._check_evaluation()
        if self.distributed.deterministic and self.training.compile:
            raise ValueError(
                "distributed.deterministic: true needs training.compile: false; a compiled network may give other bits"
            )
        return self

    def _check_triplets(self) -> None:
        """Check that the triplet loss, if it has a weight, finds positives and negatives in a batch."""
        data, of_alphas = self.data, self.search.losses if self.task == "search" else None
        weighted = [
            key
            for key, losses in (("losses", self.losses), ("search.losses", of_alphas))
            if losses is not None and losses.has_triplets
        ]
        if not weighted:
            return
        without = f"{weighted[0]}.triplet_weight: 0, without the triplet loss"
        if data.images_per_identity < 2:
            raise ValueError(
                f"data.images_per_identity: 1 leaves no positives to the triplet loss, which is always 0 then; use 2 "
                f"or more, or {without}"
            )
        identities = data.batch_size // data.images_per_identity // self.training.accumulation
        if identities < 2:
            raise ValueError(
                f"data.batch_size: {data.batch_size} with data.images_per_identity {data.images_per_identity} and "
                f"training.accumulation {self.training.accumulation} leaves no negatives to the triplet loss, which is "
                f"always 0 then; use two identities or more in each micro-batch, or {without}"
            )

    def _check_evaluation(self) -> None:
        data, split = self.data, self.evaluation.split
        if split == "held_out" and not data.held_out_fraction:
            raise ValueError("evaluation.split: held_out needs data.held_out_fraction above 0; or use test")
        if self.task == "search" and self.search.read_out != "argmax" and split == "test":
            raise ValueError(
                f"search.read_out: {self.search.read_out} needs evaluation.split: held_out; it would choose the "
                f"genotype by the mAP on the test images"
            )
        if split == "held_out" and data.targets:
            raise ValueError("data.targets: need evaluation.split: test")
        seen = sorted({*data.sources} & {*(data.targets or data.sources)})
        if split == "test" and data.combine_all and seen:
            raise ValueError(f"data.combine_all: would train on the query and gallery of {seen[0]}, a target")

    def _check_search(self) -> None:
        training, search = self.training, self.search
        if training.optimizer != "sgd":
            raise ValueError(
                f"training.optimizer: must be sgd, whose step a search unrolls; {training.optimizer} is for task: train"
            )
        for key in ("nesterov", "frozen_epochs", "ema_decay", "backbone_scale"):
            if key in training.changed_keys():
                raise ValueError(f"training.{key}: for task: train only")
        if search.warmup_epochs >= training.epochs:
            raise ValueError(
                f"search.warmup_epochs: {search.warmup_epochs} must be less than training.epochs "
                f"({training.epochs})"
            )
        for key, losses in (("losses", self.losses), ("search.losses", search.losses)):
            if losses is None:
                continue
            for term in losses.terms:
                if term == "alignment" or term.startswith(METRIC_LEARNING):
                    raise ValueError(f"{key}.terms: {term} is for task: train only")
            if losses.softmax != "linear":
                raise ValueError(f"{key}.softmax: {losses.softmax} is for task: train only")
        self._check_alphas_see()
        self._check_compiled_search()
        search.space_section.check_images(self.data.height, self.data.width)

    def _check_alphas_see(self) -> None:
        see, sources = self.search.alphas_see, self.data.sources
        if see == "domains" and len(sources) < 2:
            raise ValueError(
                f"search.alphas_see: domains needs two or more data.sources, not {sources[0]} alone"
            )
        weight = (self.search.losses or self.losses).classification_weight
        if see in ("identities", "domains") and weight:
            raise ValueError(
                f"search.alphas_see: {see} needs search.losses.classification_weight: 0, not {weight}; the weights do "
                f"not learn to classify the alphas' identities"
            )

    def _check_compiled_search(self) -> None:
        """Check what a compiled or captured pass of a search cannot do."""
        for key, reason in (
            ("compile", "the compiler itself chooses what to recompute"),
            ("cuda_graphs", "captured passes keep their memory anyway"),
        ):
            if not getattr(self.training, key):
                continue
            if self.search.relaxation in SAMPLING:
                raise ValueError(
                    f"training.{key}: true cannot be combined with search.relaxation: "
                    f"{self.search.relaxation}, which computes "
                    f"other candidates in each step"
                )
            if self.search.activation_checkpointing != "none":
                raise ValueError(
                    f"training.{key}: true needs search.activation_checkpointing: none; {reason}"
                )

    def to_yaml(self) -> str:
        """Return the resolved config, every key with its value, as YAML that `load_config` reads back."""
        content = self.model_dump(mode="json")
        return str(yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True))
