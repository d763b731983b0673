"""Signs of a search: whether it has decided, how noisy its gradients are, and that it stops when it collapses."""

from __future__ import annotations

import math

import pytest
import torch

from autoreid.distributed import StopSignal
from autoreid.search.progress import SearchProgress
from autoreid.search.signs import best_columns, best_two, entropies, search_signs, undecided
from autoreid.spaces.reid_cell.genotype import CellGenotype
from autoreid.spaces.space import Choices
from tests.helpers.tasks import build_search_task

COLUMNS = ("none", "sep_conv_3x3", "skip_connect")


def test_entropies():
    rows = torch.tensor([[0.25] * 4, [1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.7, 0.1, 0.1, 0.1]])
    found = entropies({"a": rows})["a"].tolist()
    last = -0.7 * math.log(0.7) - 0.3 * math.log(0.1)
    assert found == pytest.approx([math.log(4), 0, math.log(2), last])


def leads_of(rows, columns=3, lead=math.inf):
    return torch.full((rows, columns, columns), lead)


def test_what_a_genotype_never_has_does_not_compete():
    group = Choices(("a", "b", "c"), COLUMNS, never_chosen=("none",))
    values = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.0, 0.45, 0.55]])
    pairs, columns = best_two(values, group)
    assert pairs.flatten().tolist() == pytest.approx([0.2, 0.1, 0.6, 0.3, 0.55, 0.45])
    assert columns.tolist() == [[1, 2], [2, 1], [2, 1]]
    assert best_columns({"a": values}, {"a": group}) == {"a": [1, 2, 2]}
    alone = Choices(("a",), ("none", "skip_connect"), never_chosen=("none",))
    one = {"a": torch.tensor([[0.9, 0.1]])}
    assert undecided(one, {"a": alone}, {"a": leads_of(1, 2, math.nan)}) == {"a": 0}, "there is no choice"


def test_a_choice_needs_both_a_ratio_and_the_gradients_to_be_decided():
    values, choices = {"a": torch.tensor([[0.6, 0.3, 0.1]] * 5)}, {"a": Choices(tuple("abcde"), COLUMNS)}
    leads = leads_of(5)
    for row, lead in enumerate((2.0, 1.9, -5.0, math.nan, math.inf)):
        leads[row, 0, 1] = lead
    assert undecided(values, choices, {"a": leads}) == {"a": 3}
    close = {"a": torch.tensor([[0.5, 0.3, 0.2]] * 5)}
    assert undecided(close, choices, {"a": leads_of(5)}) == {"a": 5}


def test_search_signs():
    choices = {name: Choices(("a", "b"), COLUMNS) for name in ("normal", "reduce")}
    normal = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.8, 0.1]])
    reduce = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    watched = {"skip_share": ("skip_connect",), "waste": ("none", "skip_connect"), "absent": ("part_aware",)}
    signs = search_signs({"normal": normal, "reduce": reduce}, choices, watched, {"normal": 1, "reduce": 0})
    entropy = -sum(p * math.log(p) for p in (0.5, 0.2, 0.3, 0.1, 0.8, 0.1)) / 2
    assert signs == pytest.approx(
        {
            "normal/entropy": entropy,
            "normal/margin": (0.2 + 0.7) / 2,
            "normal/undecided": 0.5,
            "normal/skip_share": 0.2,
            "normal/waste": 0.5,
            "reduce/entropy": 0.0,
            "reduce/margin": 1.0,
            "reduce/undecided": 0.0,
            "reduce/skip_share": 0.5,
            "reduce/waste": 0.5,
        }
    )


def progress():
    return SearchProgress({"a": (30, 7)}, torch.device("cpu"))


@pytest.mark.parametrize("ratio", [0.0, 0.1, 1.0])
def test_the_signal_to_noise_ratio_is_that_of_the_distribution(ratio):
    """Gradients of a known mean and unit noise: |mean| / sqrt(total variance), also where the noise dominates."""
    torch.manual_seed(0)
    memory, mean = progress(), torch.randn(30, 7)
    mean *= ratio * math.sqrt(30 * 7) / mean.norm()
    for _ in range(200):
        memory.add([mean + torch.randn(30, 7)])
    found = memory.gradient_signs()["a/gradient_snr"]
    assert found == pytest.approx(ratio, abs=0.05)
    assert memory.gradient_signs() == {}, "each epoch starts anew"


def test_leads_are_t_statistics_of_pairs():
    torch.manual_seed(0)
    memory, steps = progress(), [torch.randn(30, 7) + torch.arange(7) / 10 for _ in range(20)]
    assert memory.leads()["a"].isnan().all()
    for gradient in steps:
        memory.add([gradient])
    stacked = torch.stack(steps).double()
    for one, other in ((0, 6), (3, 1)):
        differences = stacked[:, :, other] - stacked[:, :, one]
        expected = differences.mean(0) / (differences.std(0) / math.sqrt(20))
        torch.testing.assert_close(memory.leads()["a"][:, one, other], expected, rtol=1e-4, atol=1e-4)
    assert memory.leads()["a"][:, 0, 6].mean() > 1, "descent favours the smaller gradient"


def test_leads_survive_a_large_gradient_that_candidates_share():
    """As that of the cost of two candidates without parameters: what the loss adds to it decides between them."""
    torch.manual_seed(0)
    memory, steps = progress(), [1e-3 * torch.randn(30, 7) + 1 for _ in range(5000)]
    for gradient in steps:
        memory.add([gradient])
    differences = torch.stack(steps).double()
    differences = differences[:, :, 6] - differences[:, :, 0]
    expected = differences.mean(0) / (differences.std(0) / math.sqrt(5000))
    torch.testing.assert_close(memory.leads()["a"][:, 0, 6], expected, rtol=0.01, atol=0.01)
    assert memory.gradient_signs()["a/gradient_snr"] == pytest.approx(1000, rel=0.01)


def test_changes_are_counted_from_epoch_to_epoch():
    memory = progress()
    assert memory.changes({"a": [1, 2, 3]}) == {}
    assert memory.changes({"a": [1, 0, 0]}) == {"a/changed": 2}
    assert memory.changes({"a": [1, 0, 0]}) == {"a/changed": 0}


def test_the_memory_survives_a_checkpoint(tmp_path):
    memory, other = progress(), progress()
    cell = ((("skip_connect", 0), ("part_aware", 1)),)
    memory.add([torch.ones(30, 7)])
    memory.changes({"a": [1, 2]})
    memory.sound, memory.sound_epoch = CellGenotype(normal=cell, reduce=cell), 3
    torch.save(memory.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.state_dict().keys() == memory.state_dict().keys()
    assert other.sound == memory.sound
    assert (other.columns, other.sound_epoch) == ({"a": [1, 2]}, 3)
    for one in (memory, other):
        one.add([torch.zeros(30, 7)])
    assert other.gradient_signs() == memory.gradient_signs() != {}


def test_the_signs_of_an_epoch(tmp_path):
    task = build_search_task(tmp_path)
    steps = task.state.steps_per_epoch
    for epoch in range(2):
        for _ in range(steps):
            task.step(StopSignal())
        metrics = task.end_epoch(StopSignal()).metrics
        assert {"normal/margin", "normal/undecided", "reduce/gradient_snr"} <= metrics.keys()
        assert ("normal/changed" in metrics) == (epoch > 0)
        assert metrics["normal/undecided"] == 1, "alphas that hardly move"
        assert task.state.progress.undecided == {"normal": 5, "reduce": 5}
    assert task.state.progress.signs["normal/changed"] == metrics["normal/changed"]


SKIPS = {
    "search__reid_cell__stop_at_skips": 1,
    "search__reid_cell__operations": ["skip_connect", "sep_conv_3x3"],
}


def epochs_until_it_stops(task, better):
    """Ends epochs without steps, with a normal cell of one operation in each, until the search is finished."""
    for operation in better:
        with torch.no_grad():
            task.state.alphas.groups["normal"].zero_()[
                :, SKIPS["search__reid_cell__operations"].index(operation)
            ] = 5
        task.state.step = (task.state.epoch + 1) * task.state.steps_per_epoch
        result = task.end_epoch(StopSignal())
        if task.state.finished:
            break
    return result


def test_a_collapse_of_trained_alphas_ends_the_search_with_the_genotype_before_it(tmp_path, caplog):
    task = build_search_task(tmp_path, **SKIPS, training__epochs=9)
    order = ["sep_conv_3x3", "skip_connect", "sep_conv_3x3", "skip_connect", "skip_connect", "sep_conv_3x3"]
    result = epochs_until_it_stops(task, order)
    assert result.epoch == 5, "two epochs in a row"
    assert {edge.operation for node in result.genotype.normal for edge in node} == {"sep_conv_3x3"}
    assert task.genotype() == result.genotype
    assert "collapsed and stops after epoch 5; the genotype is that of epoch 3" in caplog.text


def test_untrained_alphas_cannot_collapse(tmp_path):
    task = build_search_task(tmp_path, **SKIPS, training__epochs=5, search__warmup_epochs=3)
    result = epochs_until_it_stops(task, ["skip_connect"] * 5)
    assert result.epoch == 5, "epochs 1 to 3 are the warm-up; 4 and 5 are the first two in a row"
    assert {edge.operation for node in result.genotype.normal for edge in node} == {"skip_connect"}
