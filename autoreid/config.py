"""The typed, strict schema of a run; autoreid.recipes reads it from YAML."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
#: Of a data set: a folder's name, and no path.
DataName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
#: Operations that a cell of the `reid_cell` space may use, in the order of the alphas' columns.
#: `none` may take an edge's weight during the search but never an edge of a genotype.
CELL_OPERATIONS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "dil_conv_3x3",
    "part_aware",
    "sep_conv_5x5",
    "dil_conv_5x5",
)
#: Of what a network computes; its weights are float32 with each.
Precision = Literal["float32", "tf32", "bfloat16"]


class Section(BaseModel):
    """What all sections share: unknown keys and wrong types are refused, a loaded config never changes."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class SyntheticPeople(Section):
    """Synthetic people to draw; equal settings give equal files."""

    train_identities: Count = 64
    """People to train on."""
    test_identities: Count = 32
    """Other people, to be found."""
    images_per_identity: Count = 16
    """Images of a person: all in the training set, or in query and gallery together."""
    cameras: Annotated[int, Field(ge=2)] = 4
    """Cameras, each of which sees every person."""
    distractors: CountOrZero = 32
    """Gallery images of people who are no query."""
    junk: CountOrZero = 16
    """Badly cropped gallery images, which a ranking must ignore."""
    height: Annotated[int, Field(ge=32)] = 128
    """Image height in pixels."""
    width: Annotated[int, Field(ge=16)] = 64
    """Image width in pixels."""
    domain: CountOrZero = 0
    """Shifts the style of all cameras, and shows other people."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Decides everything that is left to chance."""

    @model_validator(mode="after")
    def _queries_have_matches(self) -> SyntheticPeople:
        if self.images_per_identity < self.cameras + 2:
            raise ValueError(
                f"images_per_identity {self.images_per_identity} leaves queries without a match:"
                f" with {self.cameras} cameras expected at least {self.cameras + 2}"
            )
        return self


def _duplicate(names: Sequence[str]) -> str | None:
    """The first name that appears more than once, if there is one."""
    return next((name for name in names if names.count(name) > 1), None)


class Data(Section):
    """What is trained on, and how batches are made of it."""

    root: Path
    """Folder that holds the data sets, each in a folder of its own."""
    sources: Annotated[tuple[DataName, ...], Field(min_length=1)] = ("market1501",)
    """Data sets to train on, as one: published ones by name, or folders below `root`."""
    targets: tuple[DataName, ...] = ()
    """Data sets whose query and gallery are measured with `evaluation.split: test`; none for the sources' own."""
    combine_all: bool = False
    """Train on the sources' query and gallery too, without their distractors; the targets must be others."""
    synthetic: dict[DataName, SyntheticPeople] = {}
    """Sources and targets that are drawn: synthetic people, written below `root` if they are not there yet."""
    height: Count = 256
    """Image height in pixels."""
    width: Count = 128
    """Image width in pixels."""
    batch_size: Count = 64
    """Images in a global batch; each rank takes an equal share."""
    images_per_identity: Count = 4
    """K: images of each identity in a batch."""
    alpha_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of each identity's training images that only the alphas see."""
    held_out_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the training identities kept from the search, to measure its retrieval on."""
    padding: CountOrZero = 10
    """Pixels of padding on every side before a random crop back to height × width."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip."""
    erasing: Fraction = 0.0
    """Probability of random erasing (arXiv 1708.04896)."""
    brightness: Fraction = 0.0
    """Strength of random brightness."""
    contrast: Fraction = 0.0
    """Strength of random contrast."""
    cache: Path | None = Path(".image_cache")
    """Folder of images decoded and resized once, below `root` unless it is absolute; null decodes them each time."""
    on_broken_image: Literal["error", "skip"] = "error"
    """An image that cannot be read when the run starts ends it, or is left out, which the log says."""
    workers: CountOrZero = 4
    """Loader processes a rank, for each of the two training streams; 0 loads in the main process."""

    @model_validator(mode="after")
    def _check(self) -> Data:
        for key in ("sources", "targets"):
            names = getattr(self, key)
            if duplicate := _duplicate(names):
                raise ValueError(f"{key}: duplicate entry {duplicate}")
        return self


class Temperature(Section):
    """Of Gumbel-softmax: high mixes all candidates alike, low nearly picks one."""

    start: Positive = 10.0
    """At the start."""
    end: Positive = 1.0
    """At the end, and never below."""
    schedule: Literal["halving", "linear", "cosine"] = "halving"
    """halving: at epochs; linear and cosine: step by step over all epochs."""
    every_epochs: Count = 20
    """Epochs between two halvings."""

    @model_validator(mode="after")
    def _check(self) -> Temperature:
        if self.end > self.start:
            raise ValueError("end: must not exceed start")
        return self


class SpaceSection(Section):
    """The settings of one search space, under its name in `search`."""

    def check_images(self, height: int, width: int) -> None:
        """Raises ValueError, naming the key, if images of this size in pixels are too small for the supernet."""


class ReidCell(SpaceSection):
    """DARTS cells with a part-aware operation (Auto-ReID)."""

    operations: tuple[Literal[CELL_OPERATIONS], ...] = CELL_OPERATIONS[:7]  # type: ignore[valid-type]
    """Candidate operations of every edge."""
    stem: Literal["resnet", "darts"] = "resnet"
    """resnet: 7×7 convolution of stride 2 and a pool, to 1/4 resolution; darts: 3×3 convolution of stride 1."""
    channels: Count = 16
    """C of the first cells; each reduction cell doubles it."""
    partial_channels: Count = 1
    """K: an edge's candidates see 1/K of the channels, and edges have weights too (PC-DARTS uses 4); 1 is off."""
    cells_per_stage: tuple[Count, ...] = (2, 2, 2, 2)
    """Cells in each stage; the first cell of every stage except the first is a reduction cell."""
    nodes: Annotated[int, Field(ge=2)] = 4
    """Nodes in a cell."""
    parts: Count = 4
    """M: horizontal body parts of the part-aware operation."""
    stop_at_skips: Count | None = None
    """Stop once the normal cell has this many skip_connect edges (DARTS+); null never stops."""

    @model_validator(mode="after")
    def _check(self) -> ReidCell:
        if duplicate := _duplicate(self.operations):
            raise ValueError(f"operations: duplicate entry {duplicate}")
        if not set(self.operations) - {"none"}:
            raise ValueError("operations: at least one operation other than none is needed")
        if self.channels % self.partial_channels:
            raise ValueError(
                f"partial_channels: {self.partial_channels} does not divide channels ({self.channels})"
            )
        if len(self.cells_per_stage) < 2:
            raise ValueError(
                "cells_per_stage: at least two stages are needed; the second begins with a reduction cell"
            )
        return self

    def check_images(self, height: int, width: int) -> None:  # noqa: ARG002
        """Raises ValueError if the last cell has fewer rows than the part-aware operation has parts."""
        halvings = len(self.cells_per_stage) - 1 + (2 if self.stem == "resnet" else 0)
        rows = -(-height // 2**halvings)
        if "part_aware" in self.operations and rows < self.parts:
            raise ValueError(
                f"search.reid_cell.parts: {self.parts} parts do not fit into the last cell's {rows} rows; "
                f"use fewer, or a data.height above {height}"
            )


class OsnetAin(SpaceSection):
    """Where OSNet has instance norm (OSNet-AIN)."""

    width: Annotated[float, Field(ge=0.25)] = 1.0
    """Multiplies the channels 64, 256, 384 and 512."""

    def check_images(self, height: int, width: int) -> None:
        """Raises ValueError if the last blocks see a single pixel, which instance norm cannot normalise."""
        rows, columns = -(-height // 4) // 4, -(-width // 4) // 4
        if rows * columns < 2:
            raise ValueError(
                f"data.height: images of {height}×{width} leave {rows}×{columns} pixels to the last blocks, "
                f"whose instance norm needs two or more"
            )


class Search(Section):
    """The search space and how its alphas are trained."""

    space: Literal["reid_cell", "osnet_ain"] = "reid_cell"
    """The space to search; its settings are in the section of this name."""
    reid_cell: ReidCell = ReidCell()
    osnet_ain: OsnetAin = OsnetAin()
    activation_checkpointing: Literal["none", "cell"] = "none"
    """What the backward pass computes again instead of keeping it: nothing, or whole cells (OSNet's blocks)."""
    relaxation: Literal["softmax", "gumbel", "gumbel_hard"] = "softmax"
    """How alphas become mixing weights; gumbel_hard uses one sampled candidate at a time (straight-through)."""
    temperature: Temperature = Temperature()
    level: Literal["bilevel", "single"] = "bilevel"
    """bilevel: alphas learn from images of their own; single: from the weights' images and backward pass."""
    order: Literal["first", "second", "exact"] = "second"
    """bilevel: gradient of the alphas: first order; second by finite differences (DARTS eq. 8); or exact."""
    second_order_precision: Precision = "float32"
    """bilevel, order second and exact: as training.precision, for the passes that give the alphas' gradient.
    It rests on small differences between gradients, which tf32 and bfloat16 round away. Order first computes in
    training.precision."""
    warmup_epochs: CountOrZero = 0
    """Epochs in which only the weights are trained."""
    alpha_optimizer: Literal["adam", "sgd"] = "adam"
    """adam has a constant learning rate; sgd follows the weights' schedule, with their momentum."""
    alpha_learning_rate: Positive = 3e-4
    """Learning rate of the alphas, at the start."""
    alpha_betas: tuple[Fraction, Fraction] = (0.5, 0.999)
    """Adam's betas for the alphas."""
    alpha_weight_decay: Annotated[float, Field(ge=0)] = 1e-3
    """Weight decay of the alphas."""

    @model_validator(mode="after")
    def _check(self) -> Search:
        for name, section in self:
            if isinstance(section, SpaceSection) and name != self.space:
                for key in _changed(section):
                    raise ValueError(f"{name}.{key}: a setting of space {name}, but space is {self.space}")
        if self.reid_cell.partial_channels > 1 and self.relaxation != "softmax":
            raise ValueError(
                f"reid_cell.partial_channels: edges are weighted by relaxation softmax, not {self.relaxation}"
            )
        return self

    @property
    def space_section(self) -> SpaceSection:
        """The settings of the space to search."""
        section: SpaceSection = getattr(self, self.space)
        return section


def _changed(section: Section) -> list[str]:
    """Keys of a section whose values are not the defaults."""
    fields = type(section).model_fields
    return [key for key, value in section if value != fields[key].default]


class Model(Section):
    """The fixed network that task: train trains."""

    name: str = "resnet50"
    """Which network: resnet50, pcb, osnet_x1_0, osnet_ain_x1_0, ... or derived, from a genotype."""
    weights: Path | None = None
    """Checkpoint to start from: torchvision's ImageNet weights, torchreid's, or a run's; of a search, for derived."""
    options: dict[str, int | float | bool | str | tuple[int, ...]] = {}
    """Of the network, such as {last_stride: 1}; for derived: {genotype: FILE, channels: 48, ...}."""


class Losses(Section):
    """The retrieval loss: λ·cross-entropy + (1 - λ)·batch-hard triplet."""

    classification_weight: Fraction = 0.5
    """λ."""
    margin: Annotated[float, Field(ge=0)] | None = 0.3
    """The triplet's margin; null for the soft margin."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of the cross-entropy."""
    auxiliary_weight: Annotated[float, Field(ge=0)] = 0.4
    """Of the cross-entropy of a derived network's auxiliary head, if it has one."""
    mine_across_ranks: bool = False
    """Look for hard positives and negatives in the global batch instead of each rank's share."""


class Training(Section):
    """How weights are trained."""

    epochs: Count = 50
    """Epochs; one is a pass over the images that train the weights."""
    optimizer: Literal["sgd", "amsgrad"] = "sgd"
    """sgd has momentum; amsgrad is Adam with it. A search always uses sgd."""
    learning_rate: Positive = 0.025
    """Learning rate at the start."""
    schedule: Literal["cosine", "step"] = "cosine"
    """cosine leads to the final learning rate, step by step; step multiplies by `decay` at each milestone."""
    final_learning_rate: Annotated[float, Field(ge=0)] = 0.001
    """Where the cosine ends."""
    milestones: tuple[Count, ...] = ()
    """Epochs after which the step schedule decays."""
    decay: Positive = 0.1
    """Factor of the step schedule."""
    warmup_epochs: CountOrZero = 0
    """Epochs over which the learning rate grows linearly to where the schedule has it."""
    backbone_scale: Fraction = 1.0
    """Learning rate of all but the head, as a share of the head's."""
    frozen_epochs: CountOrZero = 0
    """First epochs in which only the head is trained."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of SGD."""
    nesterov: bool = False
    """Nesterov's form of it."""
    weight_decay: Annotated[float, Field(ge=0)] = 3e-4
    """Of the weights; the alphas have their own."""
    accumulation: Count = 1
    """Micro-batches that a rank computes its share in, one by one; batch statistics and triplets are those of one."""
    gradient_clip: Positive | None = 5.0
    """Largest norm of the weights' gradient; null does not clip."""
    precision: Precision = "tf32"
    """float32 is IEEE's. tf32 is float32 whose factors GPUs round to 10 bits in convolutions and matrix products: much
    faster, and hardly less accurate; CPUs do not round. bfloat16 computes under autocast, with 7 bits, which also
    takes less memory; weights, alphas and losses stay float32."""
    channels_last: bool = False
    """Memory layout that convolutions on GPUs prefer."""
    compile: bool = False
    """Compile the forward and backward passes that train the weights: minutes at the start, for faster steps."""
    cuda_graphs: bool = False
    """Replay the forward and backward passes that train the weights and, where search.order is first, the alphas as
    CUDA graphs: nothing but the host's launches is saved, so results stay the same. Each captured pass keeps its
    memory."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Of an exponential moving average of the weights, which is then what is measured and kept; null for none."""

    @model_validator(mode="after")
    def _check(self) -> Training:
        if self.final_learning_rate > self.learning_rate:
            raise ValueError("final_learning_rate: must not exceed learning_rate")
        if self.cuda_graphs and self.compile:
            raise ValueError("cuda_graphs: true does not go with compile: true; choose one of them")
        if self.cuda_graphs and self.accumulation > 1:
            raise ValueError(
                f"cuda_graphs: true needs accumulation: 1, not {self.accumulation}; a replay overwrites the gradients "
                f"of the micro-batch before"
            )
        if self.cuda_graphs and self.frozen_epochs:
            raise ValueError("cuda_graphs: true needs frozen_epochs: 0; a captured pass cannot be frozen")
        return self


class Evaluation(Section):
    """How retrieval is measured."""

    every_epochs: Count = 1
    """Measure after every so many epochs, and after the last."""
    split: Literal["held_out", "test"] = "held_out"
    """held_out: identities kept from the training set; test: the benchmark's own query and gallery."""
    metric: Literal["euclidean", "cosine"] = "euclidean"
    """Distance of embeddings."""
    batch_size: Count = 128
    """Images a rank embeds at once."""


class Distributed(Section):
    """Devices, and how ranks work together."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """What to compute on; auto takes a GPU where there is one."""
    share_batch_statistics: bool = True
    """Normalise over the global batch, so that any number of ranks computes the same."""
    digest_every_steps: Count = 50
    """Compare the ranks' alphas after every so many steps."""
    timeout_seconds: Positive = 600.0
    """How long a rank waits for its peers before it gives up."""
    cudnn_benchmark: bool = True
    """cuDNN tries its algorithms on each new shape and keeps the fastest; a run has few shapes, so this pays."""
    expandable_segments: bool = True
    """PyTorch's blocks of GPU memory can grow, so that less is lost in gaps; it costs no time. A
    PYTORCH_CUDA_ALLOC_CONF of your own takes precedence."""
    deterministic: bool = False
    """Runs with equal seeds on GPUs of one kind agree bit for bit, and so do resumed ones. Slower, hence not the
    default; switches cudnn_benchmark off. A run whose operations cannot do this is refused."""


class Checkpoint(Section):
    """What is saved."""

    every_steps: Count = 500
    """Save after every so many steps, beside the end of each epoch."""
    keep_last: Count = 2
    """How many checkpoints stay, beside the best."""


class Reporting(Section):
    """What a run shows."""

    every_seconds: Positive = 30.0
    """How often a plain line goes to the log."""
    every_steps: Count = 20
    """How often losses go to TensorBoard."""


class Config(Section):
    """A run."""

    task: Literal["search", "train"] = "search"
    """search finds a genotype in a space; train trains the fixed network of `model`."""
    task_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Names the run's folders; a second run of the same name resumes."""
    seed: CountOrZero = 0
    """Seed of everything random."""
    output_dir: Path = Path("runs")
    """Where run folders go."""
    genotype_dir: Path = Path("searched_genotypes")
    """Where genotypes and their pictures go."""
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
        if self.task == "search":
            self._check_search()
        elif self.training.cuda_graphs and self.model.options.get("drop_path"):
            raise ValueError(
                "training.cuda_graphs: true needs model.options.drop_path: 0; it grows from epoch to epoch, which a "
                "captured pass would not notice"
            )
        self._check_measure()
        if self.distributed.deterministic and self.training.compile:
            raise ValueError(
                "distributed.deterministic: a compiled network need not give equal bits; "
                "training.compile must be false"
            )
        return self

    def _check_measure(self) -> None:
        data, split = self.data, self.evaluation.split
        if split == "held_out" and not data.held_out_fraction:
            raise ValueError("evaluation.split: held_out needs data.held_out_fraction above 0; or use test")
        if split == "held_out" and data.targets:
            raise ValueError("data.targets: measured with evaluation.split: test only")
        seen = sorted({*data.sources} & {*(data.targets or data.sources)})
        if split == "test" and data.combine_all and seen:
            raise ValueError(f"data.combine_all: would train on the query and gallery of {seen[0]}, a target")

    def _check_search(self) -> None:
        training = self.training
        if training.optimizer != "sgd":
            raise ValueError("training.optimizer: a search unrolls a step of sgd; amsgrad is for task: train")
        if training.nesterov or training.frozen_epochs or training.ema_decay or training.backbone_scale != 1:
            raise ValueError(
                "training: nesterov, frozen_epochs, ema_decay and backbone_scale are for task: train only"
            )
        if self.search.warmup_epochs >= self.training.epochs:
            raise ValueError(
                f"search.warmup_epochs: {self.search.warmup_epochs} must be less than training.epochs "
                f"({self.training.epochs})"
            )
        if training.compile and self.search.relaxation == "gumbel_hard":
            raise ValueError(
                "training.compile: a compiled network cannot leave candidates out; not with gumbel_hard"
            )
        if training.cuda_graphs and self.search.relaxation == "gumbel_hard":
            raise ValueError(
                "training.cuda_graphs: a captured pass cannot choose other candidates; not with gumbel_hard"
            )
        if training.cuda_graphs and self.search.activation_checkpointing != "none":
            raise ValueError(
                "training.cuda_graphs: true needs search.activation_checkpointing: none; captured passes keep their "
                "memory anyway"
            )
        if training.compile and self.search.activation_checkpointing != "none":
            raise ValueError(
                "training.compile: chooses itself what to compute again; search.activation_checkpointing must be none"
            )
        self.search.space_section.check_images(self.data.height, self.data.width)

    def to_yaml(self) -> str:
        """The resolved config, every key with its value, as load_config reads it back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
