from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from autoreid.config import (
    CELL_OPERATIONS,
    DEFAULT_CELL_OPERATIONS,
    Config,
    OsnetAin,
    ReidCell,
    Search,
    SpaceSection,
)
from autoreid.errors import ConfigError
from autoreid.recipes import describe_options, load_config, option_names, parse_config
from autoreid.spaces.build import SPACES
from autoreid.spaces.genotypes import GENOTYPES
from autoreid.spaces.osnet_ain.space import OsnetAinSpace

RECIPES = Path(__file__).parents[1] / "configs"
#: Recipes, and a run's resolved config, from when the keys of all spaces were directly below `search`.
FLAT = Path(__file__).parent / "data/flat_configs"
SHIPPED = sorted(RECIPES.glob("*.yaml"))
MINIMAL = "task_name: t\ndata:\n  root: somewhere\n"


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe and gives its path."""

    def write(text=MINIMAL):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return path

    return write


def message(path, *overrides):
    """What load_config complains about, in one line that names the file or the command line."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    text = str(caught.value)
    assert "\n" not in text
    assert caught.value.exit_status == 2
    assert text.startswith((str(path), "command line: "))
    return text


def test_the_recipes_are_there():
    assert {"quickstart", "darts_triplet", "darts_classification"} <= {path.stem for path in SHIPPED}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_loads(path):
    config = load_config(path)
    assert config.task_name == path.stem


def test_recipes_hold_the_papers_numbers():
    triplet, classification = (
        load_config(RECIPES / f"{name}.yaml") for name in ("darts_triplet", "darts_classification")
    )
    found = triplet.training
    assert (found.learning_rate, found.final_learning_rate, found.epochs) == (0.1, 0.001, 210)
    assert (found.momentum, found.weight_decay) == (0.9, 5e-5)
    assert (triplet.losses.classification_weight, triplet.losses.margin) == (0.5, 0.3)
    assert (triplet.search.alpha_learning_rate, triplet.search.alpha_weight_decay) == (0.02, 5e-5)
    assert triplet.search.alpha_betas == (0.5, 0.999)
    assert sum(triplet.search.reid_cell.cells_per_stage) == 8
    assert (triplet.data.height, triplet.data.width, triplet.data.images_per_identity) == (256, 128, 4)
    found = classification.training
    assert (found.learning_rate, found.final_learning_rate, found.epochs) == (0.025, 0.001, 50)
    assert (found.weight_decay, found.gradient_clip) == (3e-4, 5.0)
    assert (classification.search.alpha_learning_rate, classification.search.alpha_weight_decay) == (
        3e-4,
        1e-3,
    )
    assert (classification.losses.classification_weight, classification.data.alpha_fraction) == (1.0, 0.5)


def test_msinets_search_has_the_papers_numbers():
    config = load_config(RECIPES / "msinet_search.yaml")
    search, training, data = config.search, config.training, config.data
    assert (search.order, search.alphas_see, search.msinet.width) == ("first", "identities", 1.0)
    assert config.losses.own_weights() == {"classification": 0.0, "triplet": 0.0}
    assert (config.losses.terms, search.losses) == ({"memory": 1.0}, None)
    assert (config.losses.memory_temperature, config.losses.memory_momentum) == (0.05, 0.2)
    assert (search.alpha_learning_rate, search.alpha_weight_decay) == (2e-3, 1e-3)
    assert search.alpha_betas == (0.5, 0.999)
    assert (training.epochs, training.milestones, training.decay) == (350, (150, 225, 300), 0.1)
    assert (training.learning_rate, training.warmup_epochs, training.weight_decay) == (0.025, 10, 5e-4)
    assert (data.batch_size, data.images_per_identity, data.height, data.width) == (64, 4, 256, 128)
    assert (data.flip, data.padding, data.erasing) == (0.5, 10, 0.5)
    assert load_config(RECIPES / "msinet_train.yaml").training.learning_rate == 0.065


def test_defaults_and_types(recipe):
    config = load_config(recipe())
    assert (config.task, config.seed, config.output_dir) == ("search", 0, Path("runs"))
    assert config.data.root == Path("somewhere")
    assert (config.data.sources, config.data.targets, config.data.synthetic) == (("market1501",), (), {})
    assert config.search.reid_cell.operations == DEFAULT_CELL_OPERATIONS
    assert config.search.order == "second"
    assert config.training.gradient_clip == 5.0


def test_overrides(recipe):
    path = recipe(MINIMAL + "  batch_size: 32\ntraining:\n")
    config = load_config(
        path,
        [
            "training.learning_rate=1e-1",
            "training.final_learning_rate=1e-3",
            "training.weight_decay=0",
            "training.gradient_clip=null",
            "search.reid_cell.cells_per_stage=[1, 2]",
            "search.reid_cell.operations=[none, skip_connect]",
            "data.batch_size=8",
            "data.synthetic.people.domain=1",
            "losses.margin=",
            "losses.mine_across_ranks=true",
            "output_dir=/tmp/a=b",
        ],
    )
    assert (config.training.learning_rate, config.training.final_learning_rate) == (0.1, 1e-3)
    assert config.training.weight_decay == 0.0
    assert config.training.gradient_clip is None
    assert config.search.reid_cell.cells_per_stage == (1, 2)
    assert config.search.reid_cell.operations == ("none", "skip_connect")
    assert config.data.batch_size == 8
    people = config.data.synthetic["people"]
    assert (people.domain, people.cameras) == (1, 4)
    assert config.losses.margin is None
    assert config.losses.mine_across_ranks is True
    assert config.output_dir == Path("/tmp/a=b")  # noqa: S108


def test_one_image_an_identity_suffices_for_classification(recipe):
    changes = ["data.images_per_identity=1", "losses.classification_weight=1", "data.batch_size=2"]
    assert load_config(recipe(), changes).losses.classification_weight == 1
    training = [*changes, "task=train", "search.losses.classification_weight=0"]
    assert load_config(recipe(), training).task == "train"


def test_one_image_an_identity_suffices_without_the_triplet_loss(recipe):
    changes = ["data.images_per_identity=1", "losses.triplet_weight=0", "data.batch_size=2"]
    assert load_config(recipe(), changes).losses.own_weights() == {"classification": 0.5, "triplet": 0.0}


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("seed", "010", 10),
        ("seed", "08", 8),
        ("seed", "0x10", 16),
        ("seed", "1_000", 1000),
        ("training.learning_rate", "010.5", 10.5),
        ("training.learning_rate", "1e-3", 1e-3),
        ("training.learning_rate", ".5", 0.5),
        ("losses.margin", "none", None),
        ("losses.margin", "~", None),
        ("training.gradient_clip", "None", None),
        ("search.activation_checkpointing", "none", "none"),
        ("search.reid_cell.operations", "[none, skip_connect]", ("none", "skip_connect")),
        ("data.cache", "none", None),
        ("data.cache", "None", None),
        ("data.cache", "null", None),
        ("data.cache", "cache", Path("cache")),
        ("data.cache", "'none'", Path("none")),
        ("task_name", "2024", "2024"),
        ("task_name", "007", "007"),
        ("task_name", "1e3", "1e3"),
        ("task_name", "on", "on"),
        ("task_name", "2024-01-01", "2024-01-01"),
        ("task_name", "null", "null"),
        ("data.root", "3", Path("3")),
        ("data.sources", "[007, 1e3]", ("007", "1e3")),
        ("output_dir", "runs/of #1", Path("runs/of #1")),
        ("output_dir", "runs/a: b", Path("runs/a: b")),
        ("output_dir", "'runs/of #1'", Path("runs/of #1")),
        ("data.root", "~", Path("/home/of/me")),
        ("data.root", "~/data", Path("/home/of/me/data")),
        ("data.root", "$HOME/data", Path("/home/of/me/data")),
        ("data.root", "${HOME}/data", Path("/home/of/me/data")),
        ("data.root", "/scratch/$ME/data", Path("/scratch/me/data")),
        ("data.root", "/data/a$b", Path("/data/a$b")),
        ("data.cache", "~/cache", Path("/home/of/me/cache")),
        ("model.weights", "$HOME/w.pth", Path("/home/of/me/w.pth")),
        ("genotype_dir", "$HOME", Path("/home/of/me")),
    ],
)
def test_values_mean_what_they_say(recipe, monkeypatch, key, text, value):
    """In a file and on the command line; and the resolved config reads back equal."""
    monkeypatch.setenv("HOME", "/home/of/me")
    monkeypatch.setenv("ME", "me")
    written = (
        load_config(recipe(_with(key, text)))
        if "#" not in text and ": " not in text and text != "~"
        else None
    )
    given = load_config(recipe(MINIMAL), [f"{key}={text}"])
    for config in filter(None, (written, given)):
        found = config
        for name in key.split("."):
            found = getattr(found, name)
        assert found == value
        assert type(found) is type(value)
        if text != "'none'":  # what is written as none reads as null
            assert load_config(recipe(config.to_yaml())) == config


def _with(key, text):
    """The minimal recipe with a key."""
    tree = {"task_name": "t", "data": {"root": "somewhere"}}
    *sections, last = key.split(".")
    inner = tree
    for name in sections:
        inner = inner.setdefault(name, {})
    inner[last] = "VALUE"
    return yaml.safe_dump(tree).replace("VALUE", text)


def test_overrides_of_a_synthetic_section_keep_its_other_keys(recipe):
    path = recipe(MINIMAL + "  synthetic: {winter: {cameras: 3, seed: 5}}\n")
    people = load_config(path, ["data.synthetic.winter.domain=2"]).data.synthetic["winter"]
    assert (people.cameras, people.seed, people.domain) == (3, 5, 2)
    assert load_config(path, ["data.synthetic={}"]).data.synthetic == {}


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("training.learning_rte", "training.learning_rate"),
        ("data.batchsize", "data.batch_size"),
        ("trainning.epochs", "training"),
        ("data.synthetic.winter.domian", "data.synthetic.NAME.domain"),
        ("data.synthetik.winter", "data.synthetic.NAME"),
        ("epochs", "training.epochs"),
        ("search.chanels", "search.reid_cell.channels"),
        ("search.osnet_ain.widht", "search.osnet_ain.width"),
        ("search.reid_cell.node", "search.reid_cell.nodes"),
        ("task-name", "task_name"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(recipe, wrong, right):
    assert message(recipe(), f"{wrong}=1").endswith(f"unknown key; did you mean {right}?")
    assert message(recipe(), f"{wrong}=1").startswith("command line: ")
    tree = yaml.safe_load(MINIMAL)
    *sections, last = wrong.split(".")
    inner = tree
    for section in sections:
        inner = inner.setdefault(section, {})
    inner[last] = 1
    path = recipe(yaml.safe_dump(tree))
    assert message(path).startswith(f"{path}: ")
    assert message(path).endswith(f"did you mean {right}?")


def test_a_key_like_no_other_is_answered_with_help(recipe):
    assert "qqqq = 1: unknown key; --help lists the keys" in message(recipe(), "qqqq=1")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.epochs=many", 'training.epochs = "many": input should be a valid integer'),
        ("training.epochs=1.5", "training.epochs = 1.5: input should be a valid integer"),
        ("training.epochs=true", "training.epochs = true: "),
        ("training.epochs=0", "training.epochs = 0: input should be greater than or equal to 1"),
        ("training.learning_rate='0.1'", 'training.learning_rate = "0.1": input should be a valid number'),
        ("training.learning_rate=.inf", "training.learning_rate = Infinity: "),
        ("training.weight_decay=.nan", "training.weight_decay = NaN: "),
        ("training=5", "training = 5: "),
        ("training.epochs.more=5", "training.epochs = "),
        ("search.reid_cell.cells_per_stage=[2, x]", 'search.reid_cell.cells_per_stage.1 = "x": '),
        (
            "search.reid_cell.operations=[none, conv]",
            'search.reid_cell.operations.1 = "conv": input should be ',
        ),
        ("search.order=third", "search.order = \"third\": input should be 'first', 'second' or 'exact'"),
        ("search.alpha_betas=[0.5]", "search.alpha_betas"),
        (
            "search.osnet_ain.width=0.2",
            "search.osnet_ain.width = 0.2: input should be greater than or equal to 0.25",
        ),
        (
            "search.space=darts",
            "search.space = \"darts\": input should be 'reid_cell', 'osnet_ain' or 'msinet'",
        ),
        ("search.temperature.schedule=exp", 'search.temperature.schedule = "exp": input should be '),
        ("data.flip=1.5", "data.flip = 1.5: input should be less than or equal to 1"),
        ("data.synthetic.a.cameras=1", "data.synthetic.a.cameras = 1: "),
        ("data.root=$NOT_SET/data", 'data.root = "$NOT_SET/data": there is no such environment variable'),
        ("data.root=~nobody_of_this_name", "there is no such environment variable or home folder"),
        ("data.sources=[]", "data.sources = []: "),
        ("data.sources=[../up]", 'data.sources.0 = "../up": '),
        ("data.targets=winter", 'data.targets = "winter": '),
        ("task_name=../up", 'task_name = "../up": '),
        ("task_name=" + "x" * 300, ": string should have at most 200 characters"),
        ("task_name=#1", 'task_name = "#1": '),
        ("seed=1:30", 'seed = "1:30": input should be a valid integer'),
        ("seed=3 # of 5", "seed: '3 # of 5': # begins a comment in YAML; put the value in quotes"),
        ("model.options={a: 1} # none", "# begins a comment"),
        ("model.options.genotype=#1.json", "# begins a comment"),
        ("losses.margin=1:30.5", 'losses.margin = "1:30.5": input should be a valid number'),
        ("reporting.every_seconds=2024-01-01", 'reporting.every_seconds = "2024-01-01": '),
        ("losses.terms={triplet:1.0}", "input should be a valid number; put a space after the colon"),
        ("training", "'training' is not of the form section.key=value"),
        ("=3", "not of the form"),
        ("task_name.deeper=3", "task_name is a value, not a section"),
        ("training.epochs=[1", "training.epochs: '[1' is not a YAML value"),
    ],
)
def test_wrong_values_name_key_value_and_what_would_be_right(recipe, override, expected):
    path = recipe(MINIMAL + "training:\n  epochs: {}\n" if ".more" in override else MINIMAL)
    found = message(path, override)
    assert expected in found
    assert found.startswith("command line: ")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data.batch_size=30"], "data.batch_size: 30 is not a multiple of data.images_per_identity (4)"),
        (
            ["data.images_per_identity=1"],
            "data.images_per_identity: 1 leaves no positives to the triplet loss",
        ),
        (
            [
                "data.images_per_identity=1",
                "losses.classification_weight=1",
                "search.losses.classification_weight=0",
            ],
            "use 2 or more, or search.losses.triplet_weight: 0, without the triplet loss",
        ),
        (
            ["data.batch_size=4"],
            "data.batch_size: 4 with data.images_per_identity 4 and training.accumulation 1 leaves no",
        ),
        (
            ["data.batch_size=16", "training.accumulation=4", "losses.classification_weight=0"],
            "training.accumulation 4 leaves no negatives to the triplet loss",
        ),
        (
            ["data.batch_size=4", "losses.classification_weight=1", "losses.triplet_weight=0.1"],
            "leaves no negatives to the triplet loss",
        ),
        (["search.warmup_epochs=50"], "search.warmup_epochs: 50 must be less than training.epochs (50)"),
        (["data.held_out_fraction=0"], "held_out needs data.held_out_fraction above 0; or use test"),
        (["training.learning_rate=1e-4"], "final_learning_rate: must not exceed learning_rate"),
        (
            ["search.reid_cell.operations=[none]"],
            "search.reid_cell.operations: at least one operation other than none",
        ),
        (["search.reid_cell.operations=[none, none]"], "search.reid_cell.operations: duplicate entry none"),
        (["search.reid_cell.cells_per_stage=[8]"], "search.reid_cell.cells_per_stage: at least two stages"),
        (
            ["search.osnet_ain.width=0.5"],
            "search.osnet_ain.width: a setting of space osnet_ain, but space is reid_cell",
        ),
        (
            ["search.space=osnet_ain", "search.reid_cell.stop_at_skips=2"],
            "search.reid_cell.stop_at_skips: a setting of space reid_cell, but space is osnet_ain",
        ),
        (
            ["search.space=osnet_ain", "search.reid_cell.channels=8"],
            "search.reid_cell.channels: a setting of space reid_cell",
        ),
        (
            ["search.space=osnet_ain", "search.reid_cell.partial_channels=2"],
            "search.reid_cell.partial_channels: a setting of space reid_cell",
        ),
        (
            ["search.reid_cell.partial_channels=3"],
            "search.reid_cell.partial_channels: 3 does not divide channels (16)",
        ),
        (
            ["search.reid_cell.partial_channels=32"],
            "search.reid_cell.partial_channels: 32 does not divide channels (16)",
        ),
        (
            ["search.reid_cell.partial_channels=4", "search.relaxation=gumbel_hard"],
            "search.reid_cell.partial_channels: edges are weighted by relaxation softmax, not gumbel_hard",
        ),
        (
            ["search.space=osnet_ain", "data.height=16", "data.width=28"],
            "data.height: images of 16×28 leave 1×1 pixels to the last blocks",
        ),
        (
            ["search.space=msinet", "data.width=12"],
            "data.width: images of 256×12 leave no pixel to the last cells; use a data.width of 13 or more",
        ),
        (
            ["search.msinet.width=0.2"],
            "search.msinet.width = 0.2: input should be greater than or equal to 0.25",
        ),
        (["search.temperature.end=11"], "search.temperature.end: must not exceed start"),
        (["data.height=96"], "search.reid_cell.parts: 4 parts do not fit into the last cell's 3 rows"),
        (
            ["data.height=96", "search.reid_cell.operations=[none, part_aware]"],
            "search.reid_cell.parts: 4 parts do not fit into the last cell's 3 rows",
        ),
        (["data.sources=[a, b, a]"], "data.sources: duplicate entry a"),
        (["data.targets=[a]"], "data.targets: need evaluation.split: test"),
        (
            ["data.combine_all=true", "evaluation.split=test"],
            "data.combine_all: would train on the query and gallery of market1501, a target",
        ),
        (["data.synthetic.a.images_per_identity=5"], "data.synthetic.a.images_per_identity 5 leaves queries"),
    ],
)
def test_impossible_combinations_are_refused(recipe, overrides, expected):
    assert expected in message(recipe(), *overrides)


@pytest.mark.parametrize(
    ("file", "space", "settings"),
    [
        ("quickstart.yaml", "reid_cell", ReidCell(channels=12, cells_per_stage=(1, 1))),
        ("osnet_ain_quickstart.yaml", "osnet_ain", OsnetAin(width=0.25)),
        ("osnet_ain_run.yaml", "osnet_ain", OsnetAin(width=0.25)),
    ],
)
def test_an_older_config_loads_as_if_its_space_had_a_section(tmp_path, file, space, settings):
    config = load_config(FLAT / file)
    assert (config.search.space, config.search.space_section) == (space, settings)
    nested = yaml.safe_load((FLAT / file).read_text())
    flat = {**ReidCell.model_fields, **OsnetAin.model_fields}.keys() & nested["search"].keys()
    for key in flat:
        section = "osnet_ain" if key in OsnetAin.model_fields else "reid_cell"
        nested["search"].setdefault(section, {})[key] = nested["search"].pop(key)
    (tmp_path / "nested.yaml").write_text(yaml.safe_dump(nested))
    assert config == load_config(tmp_path / "nested.yaml")


def test_a_stored_search_keeps_the_loss_that_it_began_with():
    """Searches of older versions had raw embeddings in the triplet loss; no key said so."""
    text = (FLAT / "osnet_ain_run.yaml").read_text()
    assert parse_config(text, "checkpoint").losses.normalise is False
    assert load_config(FLAT / "osnet_ain_run.yaml").losses.normalise is None
    training = text.replace("task: search", "task: train").replace("gumbel", "softmax")
    assert parse_config(training, "checkpoint").losses.normalise is None


OLDER_OPERATIONS = CELL_OPERATIONS[:7]  # the default before part_conv


@pytest.mark.parametrize("recipe_name", ["osnet_ain_quickstart.yaml", "retrain.yaml"])
def test_an_older_run_that_searches_no_cells_has_todays_unused_operations(tmp_path, recipe_name):
    """Every run stores all keys, also those that its task does not use."""
    now = load_config(RECIPES / recipe_name)
    stored = now.model_dump(mode="json")
    stored["search"]["reid_cell"]["operations"] = list(OLDER_OPERATIONS)
    text = yaml.safe_dump(stored)
    assert parse_config(text, "run") == now
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert load_config(path) == now


def test_an_older_search_keeps_its_operations(tmp_path):
    now = load_config(RECIPES / "quickstart.yaml")
    stored = now.model_dump(mode="json")
    stored["search"]["reid_cell"]["operations"] = list(OLDER_OPERATIONS)
    text = yaml.safe_dump(stored)
    assert "part_aware" in OLDER_OPERATIONS
    assert parse_config(text, "run").search.reid_cell.operations == OLDER_OPERATIONS
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert load_config(path).search.reid_cell.operations == OLDER_OPERATIONS


def test_every_space_has_a_section_and_a_name_to_choose_it():
    fields = Search.model_fields
    sections = [name for name, field in fields.items() if isinstance(field.default, SpaceSection)]
    assert sections == list(SPACES) == list(GENOTYPES) == list(get_args(fields["space"].annotation))
    assert all(kind.model_fields["space"].default == name for name, kind in GENOTYPES.items())


def test_a_flat_override_replaces_the_key_in_its_section_and_the_other_way_round():
    for recipe in (RECIPES / "quickstart.yaml", FLAT / "quickstart.yaml"):
        for key in ("search.channels", "search.reid_cell.channels"):
            assert load_config(recipe, [f"{key}=8"]).search.reid_cell.channels == 8
    flat = load_config(FLAT / "quickstart.yaml", ["search={channels: 8}", "data.height=128"]).search
    assert (flat.reid_cell.channels, flat.reid_cell.cells_per_stage) == (8, (2, 2, 2, 2))


def test_a_flat_key_is_checked_like_the_one_in_the_section(recipe):
    found = message(recipe(), "search.channels=0")
    assert found.startswith("command line: search.reid_cell.channels = 0: ")
    path = recipe(MINIMAL + "search:\n  space: osnet_ain\n  channels: 8\n")
    assert message(path) == (
        f"{path}: search.reid_cell.channels: a setting of space reid_cell, but space is osnet_ain"
    )
    path = recipe(MINIMAL + "search:\n  channels: 8\n  reid_cell: {channels: 8}\n")
    assert message(path) == (
        f"{path}: search.channels and search.reid_cell.channels are the same key; remove one"
    )
    assert "search.reid_cell = 5: " in message(recipe(MINIMAL + "search: {channels: 8, reid_cell: 5}\n"))
    assert "search.reid_cell = 0: " in message(recipe(MINIMAL + "search: {channels: 8, reid_cell: 0}\n"))
    path = recipe(MINIMAL + "search:\n  channels: 8\n  reid_cell:\n")
    assert load_config(path).search.reid_cell == ReidCell(channels=8)


def test_an_impossible_combination_says_who_asked_for_it(recipe):
    assert message(recipe(), "data.batch_size=30").startswith("command line: ")
    assert message(recipe(), "search.reid_cell.operations=[none]").startswith("command line: ")
    path = recipe(MINIMAL + "  batch_size: 30\n")
    assert message(path).startswith(f"{path}: ")
    # An override elsewhere is not to blame.
    assert message(path, "seed=1", "data.width=64").startswith(f"{path}: ")


def test_two_pixels_are_enough_for_instance_norm(recipe):
    config = load_config(recipe(), ["search.space=osnet_ain", "data.height=16", "data.width=29"])
    network = OsnetAinSpace(config.search).build_supernet(2)
    network(torch.zeros(2, 3, 16, 29), {"blocks": torch.full((6, 4), 0.25)})
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        network(torch.zeros(2, 3, 16, 28), {"blocks": torch.full((6, 4), 0.25)})


def test_a_map_that_fits_the_parts_exactly_is_allowed(recipe):
    """128 rows, a quarter after the stem, halved by three reductions: 4 rows for 4 parts."""
    assert load_config(recipe(), ["data.height=128"]).data.height == 128
    assert (
        load_config(recipe(), ["data.height=96", "search.reid_cell.operations=[skip_connect]"]).data.height
        == 96
    )
    assert load_config(recipe(), ["data.height=32", "search.reid_cell.stem=darts"]).data.height == 32


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (MINIMAL + "  height: 64\n  height: 128\n", ":5: not valid YAML: duplicate key 'height'"),
        ("task_name: t\ndata: [1,\n  2\n", ":4: not valid YAML: "),
        ("a: b: c\n", ":1: not valid YAML: mapping values are not allowed here"),
        ("a: \x07\n", ": not valid YAML: unacceptable character"),
        ("- 1\n", ": expected sections of keys"),
        ("", ": expected sections of keys"),
        ("data:\n  root: x\n", ": task_name: missing, and it has no default"),
        ("task_name: t\n", ": data: missing"),
        ("task_name: t\ndata:\n", ": data = null: "),
        (MINIMAL + "seed: !!binary aGk=\n", ": a value is not a number"),
        (MINIMAL + "search: &a\n  relaxation: [*a]\n", ": a value is not a number"),
        (MINIMAL + "seed: x\nreporting: {every_steps: 0}\n", " (and 1 more)"),
    ],
)
def test_a_broken_file_is_named_with_the_line(recipe, text, expected):
    path = recipe(text)
    found = message(path)
    assert found.startswith(str(path))
    assert expected in found


def test_a_file_that_cannot_be_read(tmp_path):
    assert "cannot read the config" in message(tmp_path / "missing.yaml")
    assert "cannot read the config" in message(tmp_path)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"task_name: \xe4\n")
    assert "cannot read the config" in message(latin)


def test_no_code_is_run_from_a_config(recipe):
    found = message(recipe("task_name: !!python/object/apply:os.getcwd []\n"))
    assert "could not determine a constructor" in found


def test_a_config_does_not_change():
    config = load_config(RECIPES / "darts_triplet.yaml")
    with pytest.raises(ValueError, match="frozen"):
        config.training.epochs = 3  # type: ignore[misc]


@settings(max_examples=60, deadline=None)
@given(
    st.fixed_dictionaries(
        {
            "task_name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
            "seed": st.integers(0, 2**63),
            "output_dir": st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1).map(
                lambda text: str(Path(text))
            ),
        }
    ),
    st.fixed_dictionaries(
        {},
        optional={
            "learning_rate": st.floats(1e-2, 1e10),
            "final_learning_rate": st.floats(0, 1e-2),
            "gradient_clip": st.none() | st.floats(1e-12, 1e12),
            "precision": st.sampled_from(["float32", "tf32", "bfloat16"]),
            "channels_last": st.booleans(),
        },
    ),
    st.permutations(CELL_OPERATIONS).flatmap(
        lambda names: st.integers(2, 9).map(lambda count: names[:count])
    ),
    st.dictionaries(
        st.sampled_from(["a", "b-2"]),
        st.fixed_dictionaries({"domain": st.integers(0, 9), "cameras": st.integers(2, 6)}),
    ),
)
def test_the_resolved_config_reads_back_equal(tmp_path_factory, top, training, operations, synthetic):
    tree = top | {
        "data": {"root": "x", "synthetic": synthetic},
        "training": training,
        "search": {"reid_cell": {"operations": operations}},
    }
    config = Config.model_validate_json(json.dumps(tree))
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    again = load_config(path)
    assert again == config
    assert again.to_yaml() == config.to_yaml()
    assert again.training.learning_rate == training.get("learning_rate", 0.025)


def test_help_describes_every_key():
    lines = describe_options().splitlines()
    names = list(option_names())
    assert len(names) == len(set(names))
    assert "data.synthetic.NAME.domain" in names
    for name in names:
        (line,) = [line for line in lines if line.startswith(f"  {name} (")]
        assert not line.endswith("): "), f"{name} has no meaning"


def test_option_names_are_the_keys_of_a_resolved_config():
    """All keys of a config that has every optional section, found by walking its YAML."""
    config = load_config(RECIPES / "darts_triplet.yaml", ["data.synthetic.NAME.seed=0", "search.losses={}"])

    def walk(tree, prefix=""):
        for key, value in tree.items():
            section = isinstance(value, dict) and key not in ("options", "terms", "metric_learning")
            yield from walk(value, f"{prefix}{key}.") if section else [prefix + key]

    assert list(option_names()) == list(walk(yaml.safe_load(config.to_yaml())))
