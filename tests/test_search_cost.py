"""The cost of derived networks in a search: the table, its gradient, the limit, and the same on all ranks."""

from __future__ import annotations

import copy
import io
import itertools
import json
import math

import numpy as np
import pytest
import torch

from autoreid import train
from autoreid.config import CELL_OPERATIONS
from autoreid.distributed import StopSignal
from autoreid.errors import ConfigError
from autoreid.models import count_macs, count_parameters
from autoreid.search import cost_table, read_out
from autoreid.spaces.genotype import Genotype
from autoreid.spaces.msinet.derived import MSINet
from autoreid.spaces.osnet_ain.derived import DerivedOSNet
from autoreid.spaces.reid_cell.derived import DerivedNetwork
from tests.helpers.ranks import run_ranks
from tests.helpers.tasks import Measured, build_search_task, read_out_of, search_in_float64, search_task_of
from tests.helpers.tiny import MSINET, OSNET, tiny_config, write_tiny

MACS, PARAMETERS = {"search__cost__measure": "macs"}, {"search__cost__measure": "parameters"}
LATENCY = {"search__cost__measure": "latency"}
PARTIAL = {"search__reid_cell__partial_channels": 2}
THREE_STAGES = {"search__reid_cell__cells_per_stage": [1, 2, 1], "search__reid_cell__nodes": 3}


def measured(tmp_path, **changes):
    task = build_search_task(tmp_path, **changes)
    task.state.cost.measure()
    return task, task.state.cost


def real_network(task, genotype):
    """The derived network, with its options given by hand."""
    match task.config.search.space:
        case "osnet_ain":
            return DerivedOSNet(1, genotype, width=task.config.search.osnet_ain.width)
        case "msinet":
            return MSINet(1, genotype, width=task.config.search.msinet.width)
    cell = task.config.search.reid_cell
    return DerivedNetwork(1, genotype, cell.channels, cell.cells_per_stage, cell.stem, cell.parts)


def real_cost(task, genotype):
    network, data = real_network(task, genotype), task.config.data
    if task.config.search.cost.measure == "macs":
        return count_macs(network, data.height, data.width) / 1e9
    return count_parameters(network) / 1e6


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [PARAMETERS, PARTIAL | MACS, THREE_STAGES | MACS, MSINET | MACS],
    ids=["parameters", "partial macs", "stages macs", "msinet macs"],
)
def test_the_table_gives_the_costs_of_derived_networks(tmp_path, changes):
    task, cost = measured(tmp_path, **changes)
    rng = np.random.default_rng(3)
    genotype = task.space.random_genotype(rng)
    for _ in range(4):
        other = task.space.mutated(genotype, rng)  # differs in one choice
        difference = real_cost(task, other) - real_cost(task, genotype)
        assert cost.of(other) == pytest.approx(real_cost(task, other), rel=1e-9)
        assert cost.of(other) - cost.of(genotype) == pytest.approx(difference, abs=1e-9 * cost.table.mean)
        genotype = task.space.random_genotype(rng)


def test_equal_probabilities_have_the_mean_cost_of_random_networks(tmp_path):
    task, cost = measured(tmp_path, **PARAMETERS)
    rng = np.random.default_rng(1)
    costs = [real_cost(task, task.space.random_genotype(rng)) for _ in range(100)]
    error = np.std(costs) / math.sqrt(len(costs))
    uniform = {name: torch.ones(group.shape) for name, group in task.space.choices().items()}
    assert cost.expected(uniform).item() == pytest.approx(cost.table.mean, rel=1e-5)
    assert abs(np.mean(costs) - cost.table.mean) < 4 * error < 0.1 * cost.table.mean


@pytest.mark.slow
def test_the_table_of_osnet_and_decided_probabilities(tmp_path):
    task, cost = measured(tmp_path, **OSNET, **PARAMETERS)
    for seed in range(3):
        genotype = task.space.random_genotype(np.random.default_rng(seed))
        assert cost.of(genotype) == pytest.approx(real_cost(task, genotype), rel=1e-9)
        hot = torch.eye(4)[task.space.path(genotype)["blocks"]]
        assert cost.expected({"blocks": hot}).item() == pytest.approx(cost.of(genotype), rel=1e-5)


@pytest.mark.slow
def test_equal_costs_are_worth_a_warning(tmp_path, monkeypatch, caplog):
    for value, warns in ((lambda *_: 10**6, True), (count_macs, False)):
        monkeypatch.setattr(cost_table, "count_macs", value)
        caplog.clear()
        _, cost = measured(tmp_path, **MACS)
        assert ("all networks have equal GMACs" in caplog.text) == warns
    assert cost.table.mean > 0


@pytest.mark.parametrize("relaxation", ["softmax", "drnas"])
def test_the_gradient_is_that_of_the_expected_cost(tmp_path, relaxation):
    changes = {"search__relaxation": relaxation, "search__cost__weight": 3.0}
    task, cost = measured(tmp_path, **MACS, **changes)
    alphas = task.state.alphas
    with torch.no_grad():
        for alpha in alphas.parameters():
            alpha.copy_(torch.randn(alpha.shape, generator=torch.Generator().manual_seed(5)))

    def value(name, entries):
        """By hand, in float64, of one group; the others are constant."""
        if relaxation == "softmax":
            weights = np.exp(entries)
        else:
            weights = np.where(entries > 0, entries, np.exp(entries) - 1) + 1
        weights[:, 0] = 0  # none
        p = weights / weights.sum(1, keepdims=True)
        table = cost.table
        total = (table.shares[name].numpy()[:, None] * p * table.costs[name].numpy()).sum()
        return 3.0 * total / table.mean

    for (name, alpha), gradient in zip(
        alphas.groups.items(), cost.gradients(alphas, task.relaxation), strict=True
    ):
        entries = alpha.detach().double().numpy()
        for row, column in itertools.product(range(entries.shape[0]), range(entries.shape[1])):
            shift = np.zeros_like(entries)
            shift[row, column] = 1e-5
            wanted = (value(name, entries + shift) - value(name, entries - shift)) / 2e-5
            assert gradient[row, column].item() == pytest.approx(wanted, rel=1e-3, abs=1e-6)
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize("level", ["bilevel", "single"])
def test_a_step_adds_the_gradient_once(tmp_path, level):
    changes = {"search__level": level, "training__accumulation": 2, **PARAMETERS}
    gradients, added = [], []
    for weight in (0.0, 2.0):
        task, cost = measured(tmp_path, **changes, search__cost__weight=weight)
        added = cost.gradients(copy.deepcopy(task.state.alphas), task.relaxation)
        task.step(StopSignal())
        gradients.append([alpha.grad for alpha in task.state.alphas.parameters()])
    for without, with_cost, more in zip(*gradients, added, strict=True):
        torch.testing.assert_close(with_cost - without, more, rtol=1e-4, atol=1e-6)
        assert more.abs().max() > 1e-3


@pytest.mark.slow
def test_ranks_compute_what_one_process_computes(tmp_path):
    changes = PARAMETERS | {"search__cost__weight": 5.0}
    path = write_tiny(tmp_path, **changes)
    tiny_config(tmp_path, **changes)
    (alone,) = run_ranks(search_in_float64, 1, path)
    results = run_ranks(search_in_float64, 2, path)
    assert len({digest for *_, digest in results}) == 1
    for name, value in results[1][0].items():
        torch.testing.assert_close(value, alone[0][name], rtol=1e-9, atol=1e-11)


def _table_of_rank(world, path):
    def own(networks, images, precision):
        return [100 * world.rank + place for place, _ in enumerate(networks)]

    cost_table.latencies = own
    task = search_task_of(path, world)
    task.step(StopSignal())
    return task.state.cost.state_dict(), task.state.alphas.digest()


@pytest.mark.slow
def test_all_ranks_have_the_latencies_of_rank_0(tmp_path):
    changes = LATENCY | {"search__cost__weight": 5.0}
    path = write_tiny(tmp_path, **changes)
    tiny_config(tmp_path, **changes)
    (first, digest), (second, other) = run_ranks(_table_of_rank, 2, path)
    assert digest == other
    assert first["base"] == second["base"]
    for name, values in first["costs"].items():
        assert torch.equal(values, second["costs"][name])
        assert values.abs().max() > 0


@pytest.mark.slow
def test_latencies_are_measured_once_in_a_run(tmp_path, monkeypatch):
    calls = []

    def counted(networks, images, precision):
        calls.append(len(networks))
        return [float(place) for place, _ in enumerate(networks)]

    monkeypatch.setattr(cost_table, "latencies", counted)
    task, cost = measured(tmp_path, **LATENCY)
    task.step(StopSignal())
    file = io.BytesIO()
    torch.save(task.state.state_dict(), file)
    file.seek(0)
    resumed = build_search_task(tmp_path, **LATENCY)
    resumed.state.load_state_dict(torch.load(file, weights_only=True))
    resumed.step(StopSignal())
    assert len(calls) == 1
    genotype = task.space.random_genotype(np.random.default_rng(0))
    assert resumed.state.cost.of(genotype) == cost.of(genotype)


@pytest.mark.slow
def test_measuring_changes_no_random_numbers(tmp_path):
    task = build_search_task(tmp_path, **LATENCY)
    before = torch.get_rng_state()
    task.state.cost.measure()
    assert torch.equal(before, torch.get_rng_state())
    genotype = task.space.random_genotype(np.random.default_rng(0))
    assert 0 < task.state.cost.of(genotype) < 10_000, "milliseconds"


@pytest.mark.slow
def test_a_large_weight_ends_on_cheap_networks(tmp_path):
    changes = PARAMETERS | {"search__alpha_learning_rate": 0.5}
    changes["search__reid_cell__operations"] = list(CELL_OPERATIONS[:7])
    found = {}
    for weight in (0.0, 1000.0):
        task, cost = measured(tmp_path, **changes, search__cost__weight=weight)
        expected = cost.table.mean
        for _ in range(4 * task.state.steps_per_epoch):
            task.step(StopSignal())
        probabilities = task.relaxation.probabilities(task.state.alphas)
        found[weight] = cost.of(task.genotype()), cost.expected(probabilities).item() / expected
    cheapest = cost.of(cost.cheapest())
    assert found[1000.0][0] == pytest.approx(cheapest)
    assert found[0.0][0] > 1.1 * cheapest
    assert found[1000.0][1] < found[0.0][1]


def test_the_cheapest_network_is_the_cheapest(tmp_path):
    few = ["none", "skip_connect", "sep_conv_3x3"]  # a skip that halves has parameters
    task, cost = measured(tmp_path, **PARAMETERS, search__reid_cell__operations=few)
    rng = np.random.default_rng(0)
    least = min(real_cost(task, task.space.random_genotype(rng)) for _ in range(100))
    cheapest = real_cost(task, cost.cheapest())
    assert cost.of(cost.cheapest()) == pytest.approx(cheapest)
    assert cheapest <= least + 1e-12


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_the_limit_changes_the_choices_that_cost_little_probability(tmp_path, share):
    """Against the best of all networks with the same edges."""
    few = ["none", "avg_pool_3x3", "sep_conv_3x3", "part_aware"]
    task, cost = measured(tmp_path, **PARAMETERS, search__reid_cell__operations=few)
    rng = np.random.default_rng(4)
    scores = {
        name: torch.from_numpy(rng.dirichlet(np.ones(group.shape[1]), group.shape[0])).log()
        for name, group in task.space.choices().items()
    }
    genotype = task.space.genotype({name: values.exp() for name, values in scores.items()})
    path, least = task.space.path(genotype), cost.of(cost.cheapest())
    limit = least + share * (cost.of(genotype) - least)
    cost.settings = cost.settings.model_copy(update={"limit": limit})
    found = cost.within_limit(genotype, scores)
    assert real_cost(task, found) <= limit * (1 + 1e-9)

    rows = [(name, row) for name in path for row, column in enumerate(path[name]) if column >= 0]
    score, price = np.zeros(1), np.full(1, cost.table.base)
    for name, row in rows:
        score = (score[:, None] + scores[name][row, 1:].numpy()).ravel()
        price = (price[:, None] + cost.table.costs[name][row, 1:].numpy()).ravel()
    best = score[price <= limit * (1 + 1e-9)].max()
    new = task.space.path(found)
    mine = sum(scores[name][row, new[name][row]].item() for name, row in rows)
    assert best >= mine - 1e-9
    whole = sum(scores[name][row, path[name][row]].item() for name, row in rows)
    assert whole - mine <= 1.5 * (whole - best), "at most half as much again as the best"


def test_a_limit_that_is_met_changes_nothing(tmp_path):
    task, cost = measured(tmp_path, **PARAMETERS, search__cost__limit=1000.0)
    for seed in range(5):
        genotype = task.space.random_genotype(np.random.default_rng(seed))
        scores = {name: torch.zeros(group.shape) for name, group in task.space.choices().items()}
        assert cost.within_limit(genotype, scores) == genotype


def test_a_search_ends_within_its_limit(tmp_path):
    task, cost = measured(tmp_path, **PARAMETERS)
    with torch.no_grad():
        for alpha in task.state.alphas.groups.values():
            alpha[:, task.config.search.reid_cell.operations.index("sep_conv_3x3")] += 1
    whole, least = cost.of(task.genotype()), cost.of(cost.cheapest())
    cost.settings = cost.settings.model_copy(update={"limit": (whole + least) / 2})
    task.state.step = task.state.steps_per_epoch * task.config.training.epochs
    task.state.epoch = task.config.training.epochs - 1
    result = task.end_epoch(StopSignal())
    assert task.state.finished
    assert real_cost(task, result.genotype) <= (whole + least) / 2 < whole
    assert result.metrics["cost/expected"] > 0


def test_a_limit_below_every_network_is_one_clear_line(tmp_path):
    task = build_search_task(tmp_path, **PARAMETERS, search__cost__limit=1e-5)
    with pytest.raises(
        ConfigError, match=r"^search\.cost\.limit: 1e-05 is too low: the cheapest .* M parameters"
    ):
        task.step(StopSignal())


@pytest.mark.parametrize("tight", [False, True])
def test_evolution_skips_networks_above_the_limit(tmp_path, monkeypatch, tight):
    """The mAP grows with the cost."""
    paths = {"search__level": "single", "search__relaxation": "uniform", "search__read_out": "one_shot"}
    task, cost = measured(tmp_path, **PARAMETERS, **paths)
    least = cost.of(cost.cheapest())
    limit = least if tight else 0.5 * (least + cost.table.mean)
    cost.settings = cost.settings.model_copy(update={"limit": limit})
    seen = []

    def measure(config, network, data, world, inputs):
        seen.append(cost.table.of(inputs[1]))
        return Measured(seen[-1])

    monkeypatch.setattr(read_out, "measure_network", measure)
    monkeypatch.setattr(read_out, "_estimate", lambda *_: None)
    found = read_out_of(task, cost).by_evolution()
    assert max(seen) == cost.of(found) <= limit * (1 + 1e-9)
    assert real_cost(task, found) == pytest.approx(max(seen))


def test_perturbation_keeps_the_limit(tmp_path, monkeypatch):
    task, cost = measured(tmp_path, **PARAMETERS, search__read_out="perturbation")
    probabilities = task.relaxation.probabilities(task.state.alphas)
    values = iter(np.random.default_rng(0).random(1000))
    monkeypatch.setattr(read_out, "measure_network", lambda *_: Measured(next(values)))
    found = read_out_of(task, cost).by_perturbation(probabilities)
    limit = 0.5 * (cost.of(cost.cheapest()) + cost.of(found))
    cost.settings = cost.settings.model_copy(update={"limit": limit})
    assert cost.of(read_out_of(task, cost).by_perturbation(probabilities)) <= limit


def test_a_run_reports_the_cost_and_counts_the_options(tmp_path):
    settings = PARAMETERS | {"search__cost__weight": 0.1, "search__cost__options": {"channels": 4}}
    tiny_config(tmp_path, **settings, training__epochs=1)
    assert train.main(["--config", str(tmp_path / "tiny.yaml")]) == 0
    run = tmp_path / "runs/tiny"
    result = json.loads((run / "result.json").read_text())
    (line,) = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    task = build_search_task(tmp_path, **settings)
    genotype = Genotype.parse(json.dumps(result["genotype"]), "result.json")
    cell = task.config.search.reid_cell
    network = DerivedNetwork(1, genotype, 4, cell.cells_per_stage, cell.stem, cell.parts)
    assert result["cost"] == pytest.approx(count_parameters(network) / 1e6, rel=1e-6)
    assert 0.5 < line["cost/expected"] / result["cost"] < 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search__cost__weight": 1.0}, r"search\.cost\.weight: needs measure"),
        ({"search__cost__limit": 1.0}, r"search\.cost\.limit: needs measure"),
        (
            MACS
            | {
                "search__cost__weight": 1.0,
                "search__level": "single",
                "search__relaxation": "uniform",
                "search__read_out": "one_shot",
            },
            r"search\.cost\.weight: must be 0 with relaxation uniform",
        ),
        (
            MACS | {"search__cost__options": {"genotype": "retrain.json"}},
            r"search\.cost\.options\.genotype: must not be set",
        ),
        (
            MACS | {"search__cost__options": {"num_identities": 3}},
            r"search\.cost\.options\.num_identities: must not be set",
        ),
    ],
)
def test_settings_that_do_nothing_are_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny_config(tmp_path, **changes)


def test_a_wrong_option_of_the_derived_network_is_named(tmp_path):
    task = build_search_task(tmp_path, **MACS, search__cost__options={"chanels": 4})
    with pytest.raises(ConfigError, match=r"^search\.cost\.options: .*no option 'chanels'"):
        task.step(StopSignal())


@pytest.mark.slow
@pytest.mark.parametrize("measure", ["macs", "latency"])
def test_options_that_need_larger_images_are_named(tmp_path, measure):
    """Seven stages leave 1 row of the 32, too few for two parts."""
    options = {"cells_per_stage": [1] * 7}
    task = build_search_task(tmp_path, search__cost__measure=measure, search__cost__options=options)
    with pytest.raises(ConfigError, match=r"^search\.cost\.options: data\.height 32.*a map of 1 rows"):
        task.step(StopSignal())


@pytest.mark.slow
def test_a_derived_network_that_is_too_deep_for_the_images_is_one_clear_line(tmp_path):
    task = build_search_task(tmp_path, **MACS, search__cost__options={"cells_per_stage": (1, 1, 1, 1, 1, 1)})
    with pytest.raises(
        ConfigError, match=r"data\.height 32, data\.width 16: too small for the network: .* 2 parts"
    ):
        task.step(StopSignal())


def test_without_a_measure_a_search_holds_no_costs(tmp_path):
    task = build_search_task(tmp_path)
    assert task.state.cost is None
    assert "cost" not in task.state.state_dict()
