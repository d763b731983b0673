"""The recipes of published baselines: each takes steps in miniature, and has its paper's numbers."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from autoreid import distributed
from autoreid.data.training_data import build_training_data, generate_people
from autoreid.distributed import StopSignal
from autoreid.networks import load_network
from autoreid.recipes import load_config
from autoreid.training.task import build_training
from tests.helpers.ranks import run_ranks
from tests.helpers.tasks import build_training_task, train_in_float64
from tests.helpers.tiny import DERIVED_TRAINING, OSNET_TRAINING, tiny_config, write_tiny
from tests.test_models import OPTIONS

RECIPES = Path(__file__).parents[1] / "configs"
BASELINES = sorted(RECIPES.glob("baseline_*.yaml"))
#: Every piece of the strong baselines, for a small network.
PIECES = {
    "losses__softmax": "circle",
    "losses__mining": "weighted",
    "losses__margin": None,
    "losses__normalise": None,
    "training__optimizer": "adam",
    "training__learning_rate": 1e-3,
    "training__ema_decay": 0.9,
    "data__autoaugment": 0.5,
}


def miniature(path, folder, *changes):
    """The task of a recipe on synthetic people and small images."""
    people = "train_identities: 4, images_per_identity: 6, test_identities: 2, height: 64, width: 32"
    config = load_config(
        path,
        [
            f"data.root={folder}",
            "data.sources=[people]",
            f"data.synthetic={{people: {{{people}}}}}",
            "data.height=64",
            "data.width=32",
            "data.workers=0",
            "data.batch_size=8",
            "data.images_per_identity=4",
            "distributed.device=cpu",
            *changes,
        ],
    )
    generate_people(config.data)
    with distributed.setup("cpu") as world:
        return build_training(config, build_training_data(config, world), world)


@pytest.mark.slow
@pytest.mark.parametrize("path", BASELINES, ids=lambda path: path.stem)
def test_every_baseline_trains_in_miniature(tmp_path, path):
    task = miniature(path, tmp_path)
    before = {name: value.detach().clone() for name, value in task.state.network.named_parameters()}
    _, metrics = task.step(StopSignal())
    assert metrics.isfinite().all()
    # Behind a non-local block's last scale of 0, nothing has a gradient yet.
    still = {name for name, value in task.state.network.named_parameters() if value.equal(before[name])}
    assert {name for name in still if not name.startswith("non_local") and "norm.bias" not in name} == set()


def test_the_recipe_of_found_networks_trains_in_miniature(tmp_path):
    genotype = RECIPES.parent / "searched_genotypes/published/auto_reid.json"
    small = ("model.options.channels=4", "model.options.cells_per_stage=[1, 1]")
    task = miniature(RECIPES / "retrain.yaml", tmp_path, f"model.options.genotype={genotype}", *small)
    _, metrics = task.step(StopSignal())
    named = dict(zip(task.state.metric_names, metrics.tolist(), strict=True))
    assert named["loss"] == pytest.approx(
        named["classification"] + named["triplet"] + 0.4 * named["auxiliary"], rel=1e-5
    )
    assert task.state.ema is not None
    assert task.state.network.pool.exponent.grad is not None


def test_the_recipes_have_the_published_numbers():
    bot, agw, sbs = (load_config(RECIPES / f"baseline_{name}.yaml") for name in ("bot", "agw", "sbs"))
    for config in (bot, agw, sbs):
        assert config.losses.own_weights() == {"classification": 1.0, "triplet": 1.0}
        assert (config.losses.label_smoothing, config.data.erasing, config.data.batch_size) == (0.1, 0.5, 64)
        training = config.training
        assert (training.optimizer, training.learning_rate, training.weight_decay) == ("adam", 3.5e-4, 5e-4)
        assert config.model.options["last_stride"] == 1
        assert training.unused() == {}
    for config in (bot, agw):
        training, data = config.training, config.data
        assert (training.epochs, training.milestones, training.warmup_epochs) == (120, (40, 70), 10)
        assert (data.height, data.width, data.images_per_identity) == (256, 128, 4)
    assert (bot.losses.margin, agw.losses.margin, agw.losses.mining) == (0.3, None, "weighted")
    assert agw.model.options == {"last_stride": 1, "pooling": "gem", "non_local": (2, 3)}
    assert sbs.model.options == agw.model.options
    assert (sbs.losses.softmax, sbs.losses.softmax_scale, sbs.losses.softmax_margin) == ("circle", 64, 0.35)
    assert (sbs.training.epochs, sbs.training.flat_epochs, sbs.training.final_learning_rate) == (60, 30, 7e-7)
    assert (sbs.data.height, sbs.data.images_per_identity, sbs.data.autoaugment) == (384, 16, 0.1)


def test_mgn_has_the_numbers_of_its_paper():
    config = load_config(RECIPES / "baseline_mgn.yaml")
    data, losses, training = config.data, config.losses, config.training
    assert (data.height, data.width, data.batch_size, data.images_per_identity) == (384, 128, 64, 4)
    assert (data.flip, data.padding, data.erasing, data.autoaugment) == (0.5, 0, 0.0, 0.0)
    assert (training.optimizer, training.learning_rate, training.weight_decay) == ("adam", 2e-4, 5e-4)
    assert (training.epochs, training.milestones, training.decay, training.warmup_epochs) == (
        80,
        (40, 60),
        0.1,
        0,
    )
    assert (losses.margin, losses.mining, losses.label_smoothing) == (1.2, "hard", 0.0)
    # Means of eight cross-entropies and of three triplet losses, which the paper adds.
    weights = losses.own_weights()
    assert weights["classification"] / 8 == weights["triplet"] / 3
    assert training.unused() == {}


def test_mgn_trains_with_a_frozen_backbone(tmp_path):
    task = build_training_task(tmp_path, model={"name": "mgn"}, training__frozen_epochs=1)
    before = {name: value.clone() for name, value in task.state.network.state_dict().items()}
    task.step(StopSignal())
    after = task.state.network.state_dict()
    assert {name.split(".")[0] for name in before if not after[name].equal(before[name])} == {
        "reduce",
        "classifier",
    }


def test_freezing_keeps_everything_but_what_the_published_weights_lack(tmp_path):
    model = {"name": "resnet50_ibn_a", "options": {"pooling": "gem", "non_local": [1, 0]}}
    task = build_training_task(tmp_path, model=model, training__frozen_epochs=1)
    before = {name: value.clone() for name, value in task.state.network.state_dict().items()}
    task.step(StopSignal())
    after = task.state.network.state_dict()
    changed = {name.split(".")[0] for name in before if not after[name].equal(before[name])}
    assert changed == {"neck", "pool", "non_local"}


@pytest.mark.slow
def test_ranks_train_the_pieces_as_one_process_does(tmp_path):
    model = {"name": "osnet_x0_25", "options": {"pooling": "gem"}}
    changes = OSNET_TRAINING | PIECES | {"model": model, "losses__mine_across_ranks": True}
    tiny_config(tmp_path, **changes)
    path = write_tiny(tmp_path, **changes)
    (alone,) = run_ranks(train_in_float64, 1, path)
    for weights in run_ranks(train_in_float64, 2, path):
        for name, value in weights.items():
            torch.testing.assert_close(value, alone[name], rtol=1e-7, atol=1e-9)


def test_a_found_network_trains_with_the_pieces_and_resumes_bit_for_bit(tmp_path):
    options = {
        **DERIVED_TRAINING["model"]["options"],
        **OPTIONS["derived"],
        "pooling": "gem",
        "auxiliary": True,
    }
    changes = DERIVED_TRAINING | PIECES | {"model": {"name": "derived", "options": options}}
    task, resumed = (build_training_task(tmp_path, **changes) for _ in range(2))
    for _ in range(2):
        task.step(StopSignal())
    saved = copy.deepcopy(task.state.state_dict())
    resumed.state.load_state_dict(saved)
    ends = []
    for one in (task, resumed):
        torch.set_rng_state(saved["random"][0])
        one.step(StopSignal())
        ends.append(one.state.state_dict())
    for part in ("network", "ema"):
        assert all(ends[0][part][name].equal(value) for name, value in ends[1][part].items())
    content = {"state": ends[0], "config": task.config.to_yaml(), "num_identities": task.data.num_identities}
    torch.save(content, tmp_path / "trained.pt")
    loaded = load_network(tmp_path / "trained.pt").network
    name = "pool.exponent"
    assert loaded.state_dict()[name].equal(ends[0]["ema"][f"module.{name}"])
    assert not loaded.state_dict()[name].equal(ends[0]["network"][name])
