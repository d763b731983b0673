"""Reading a genotype at the end: perturbation, and evolution in a supernet of sampled networks."""

from __future__ import annotations

import json
import signal
from collections import Counter

import numpy as np
import pytest
import torch

from autoreid import train
from autoreid.distributed import StopSignal
from autoreid.errors import ConfigError
from autoreid.search import read_out
from autoreid.search.relaxations import PathSampling
from autoreid.spaces.osnet_ain.genotype import OSNET_BLOCKS
from autoreid.spaces.space import NOTHING
from tests.helpers.tasks import Measured, build_search_task, read_out_of
from tests.helpers.tiny import OSNET, tiny_config

PATHS = {"search__level": "single", "search__relaxation": "uniform", "search__read_out": "one_shot"}
OSNET_PATHS = OSNET | PATHS
SPACES = pytest.mark.parametrize("changes", [PATHS, OSNET_PATHS], ids=["reid_cell", "osnet_ain"])


def test_without_leaves_the_proportions_of_the_others():
    mixing = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])
    found = read_out.without(mixing, 0, 0)
    torch.testing.assert_close(found, torch.tensor([[0, 0.6, 0.4], [0.2, 0.2, 0.6]]))
    assert mixing[0, 0] == 0.5


@pytest.mark.parametrize(
    "changes", [{}, OSNET | {"search__relaxation": "softmax"}], ids=["reid_cell", "osnet_ain"]
)
def test_perturbation_finds_the_candidates_whose_weight_the_map_depends_on(tmp_path, monkeypatch, changes):
    """The mAP is a planted linear function of the mixing weights, so that the best genotype is known."""
    task = build_search_task(tmp_path, **changes, search__read_out="perturbation")
    space, generator = task.space, torch.Generator().manual_seed(0)
    shapes = {name: group.shape for name, group in space.choices().items()}
    worth = {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
    probabilities = task.relaxation.probabilities(task.state.alphas)

    def measure(config, network, data, world, inputs):
        (mixing,) = inputs
        return Measured(sum((mixing[name] * worth[name]).sum().item() for name in worth))

    monkeypatch.setattr(read_out, "measure_network", measure)
    found = read_out_of(task).by_perturbation(probabilities)
    # Removing a candidate gives its weight to the others: p (w - mean of the others' w), by hand.
    scores = {}
    for name, values in worth.items():
        p = probabilities[name]
        rest = ((p * values).sum(1, keepdim=True) - p * values) / (1 - p)
        scores[name] = p * (values - rest)
    assert found == space.genotype(scores)


def test_perturbation_ends_a_search(tmp_path):
    task = build_search_task(tmp_path, search__read_out="perturbation", training__epochs=1)
    task.state.step = task.state.steps_per_epoch
    result = task.end_epoch(StopSignal())
    assert task.state.finished
    assert task.state.progress.found == result.genotype == task.genotype()
    assert task.state.network.training


@SPACES
def test_evolution_finds_a_planted_genotype(tmp_path, monkeypatch, changes):
    population = {"search__one_shot__population": 24, "search__one_shot__generations": 12}
    task = build_search_task(tmp_path, **changes, **population)
    space = task.space
    target = space.path(space.random_genotype(np.random.default_rng(99)))
    seen = []

    def measure(config, network, data, world, inputs):
        _, path = inputs
        pairs = [pair for name in target for pair in zip(path[name], target[name], strict=True)]
        seen.append(sum(a == b for a, b in pairs) / len(pairs))
        return Measured(seen[-1])

    monkeypatch.setattr(read_out, "measure_network", measure)
    monkeypatch.setattr(read_out, "_estimate", lambda *_: None)
    found = read_out_of(task).by_evolution()
    assert measure(None, None, None, None, (None, space.path(found))).map == max(seen)
    assert max(seen) > max(seen[:24]), "better than the best random one"
    again = read_out_of(task).by_evolution()
    assert again == found


@pytest.mark.parametrize(
    "changes", [PATHS, {"search__read_out": "perturbation"}], ids=["one_shot", "perturbation"]
)
def test_the_test_images_choose_no_genotype(tmp_path, changes):
    read_out_method = changes["search__read_out"]
    with pytest.raises(
        ConfigError, match=rf"search\.read_out: {read_out_method} needs evaluation\.split: held_out"
    ):
        tiny_config(tmp_path, **changes, evaluation__split="test")
    tiny_config(tmp_path, evaluation__split="test")


@SPACES
def test_statistics_are_the_means_over_batches_of_the_path_alone(tmp_path, changes):
    task = build_search_task(tmp_path, **changes, search__one_shot__norm_batches=3)
    network, space = task.state.network, task.space
    before = {name: value.clone() for name, value in network.state_dict().items()}
    path = space.path(space.random_genotype(np.random.default_rng(1)))
    images = list(read_out._images(task.config, task.data, task.world))
    assert [len(batch) for batch in images] == [16] * 3
    block = OSNET_BLOCKS[path["blocks"][0]] if "blocks" in path else None
    first = network.stem[1] if block is None else network.conv2[0][block].conv1.bn
    seen = []
    hook = first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    with read_out.own_statistics(task.config, network, path, task.data, task.world):
        means = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
        torch.testing.assert_close(first.running_mean, means, rtol=1e-4, atol=1e-5)
    hook.remove()
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


@SPACES
@pytest.mark.parametrize("fair", [False, True])
def test_sampled_networks_are_networks_of_the_space(tmp_path, changes, fair):
    task = build_search_task(tmp_path, **changes)
    relaxation = PathSampling(task.space, 5, fair)
    network, images = task.state.network, task.state.stream.preview().images
    counts = Counter()
    for step in range(8):
        mixing, path = relaxation.inputs(task.state.alphas, step, "weights", alphas_learn=False)
        assert mixing is None
        assert path == relaxation.inputs(task.state.alphas, step, "weights", alphas_learn=False)[1]
        for name, columns in path.items():
            group = task.space.choices()[name]
            assert set(columns) <= {*group.allowed, NOTHING}
            counts.update((name, row, column) for row, column in enumerate(columns))
        if "normal" in path:  # two inputs for each of two nodes: the first has no choice
            assert [column == NOTHING for column in path["normal"][:2]] == [False, False]
            assert sum(column != NOTHING for column in path["normal"][2:]) == 2
        embedding, _ = network(images, None, path)
        assert embedding.isfinite().all()
    assert len(counts) > 10


def test_fair_sampling_takes_each_candidate_once_in_a_cycle(tmp_path):
    task = build_search_task(tmp_path, **OSNET_PATHS)
    relaxation = PathSampling(task.space, 5, fair=True)
    paths = [relaxation.sample(task.state.alphas, step, "weights", False)["blocks"] for step in range(12)]
    for cycle in range(3):
        for row in range(6):
            assert {path[row] for path in paths[4 * cycle : 4 * cycle + 4]} == {0, 1, 2, 3}
    assert len({tuple(path) for path in paths}) == 12


@SPACES
def test_mutations_change_one_choice(tmp_path, changes):
    task = build_search_task(tmp_path, **changes)
    space, rng = task.space, np.random.default_rng(0)
    for _ in range(50):
        genotype = space.random_genotype(rng)
        other = space.mutated(genotype, rng)
        pairs = [
            pair
            for name, columns in space.path(genotype).items()
            for pair in zip(columns, space.path(other)[name], strict=True)
        ]
        # Another input of a node leaves one edge out and takes another one.
        assert 1 <= sum(a != b for a, b in pairs) <= 2


def test_a_search_of_sampled_networks_ends_with_the_best_of_them(tmp_path):
    sizes = {"search__one_shot__population": 3, "search__one_shot__generations": 2}
    task = build_search_task(tmp_path, **PATHS, **sizes, training__epochs=1)
    alphas = task.state.alphas.digest()
    before = [value.clone() for value in task.state.network.parameters()]
    for _ in range(task.state.steps_per_epoch):
        task.step(StopSignal())
    assert any(not torch.equal(a, b) for a, b in zip(before, task.state.network.parameters(), strict=True))
    result = task.end_epoch(StopSignal())
    assert task.state.alphas.digest() == alphas
    assert result.genotype == task.state.progress.found
    assert task.space.path(result.genotype)


@pytest.mark.parametrize(
    "changes", [PATHS, {"search__read_out": "perturbation"}], ids=["one_shot", "perturbation"]
)
def test_a_stop_signal_ends_a_read_out_and_the_run_resumes_before_it(tmp_path, monkeypatch, caplog, changes):
    small = {"search__one_shot__population": 3, "search__one_shot__generations": 1}
    slow = {"reporting__every_seconds": 1e-9}
    tiny_config(tmp_path, **changes, **small, **slow, training__epochs=1)
    count = 0

    def measure(*arguments):
        nonlocal count
        count += 1
        if count == 2:
            signal.raise_signal(signal.SIGTERM)
        return Measured(count % 7)

    monkeypatch.setattr(read_out, "measure_network", measure)
    arguments = ["--config", str(tmp_path / "tiny.yaml")]
    assert train.main(arguments) == 0
    assert count == 2, "the next measurement is not begun"
    assert not (tmp_path / "runs/tiny/result.json").exists()
    assert train.main(arguments) == 0
    result = json.loads((tmp_path / "runs/tiny/result.json").read_text())
    assert (result["epochs"], result["restarts"]) == (1, 1)
    assert count > 3
    assert "read-out: 2 of at most" in caplog.text


def test_a_run_without_trained_alphas_says_nothing_about_their_choices(tmp_path, caplog):
    small = {"search__one_shot__population": 2, "search__one_shot__generations": 1}
    tiny_config(tmp_path, **PATHS, **small, training__epochs=1)
    assert train.main(["--config", str(tmp_path / "tiny.yaml")]) == 0
    result = json.loads((tmp_path / "runs/tiny/result.json").read_text())
    assert (result["undecided"], result["choices"]) == (None, 10)
    assert result["signs"] == {}
    assert "undecided" not in (tmp_path / "runs/tiny/metrics.jsonl").read_text() + caplog.text
