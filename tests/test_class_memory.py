"""The memory of class centres: its definition, when it is updated, ranks, and resuming."""

import copy
import io
import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from autoreid.config import Losses
from autoreid.data.training_data import build_search_data, build_training_data
from autoreid.distributed import StopSignal
from autoreid.errors import ConfigError
from autoreid.losses import RetrievalLoss, build_loss
from autoreid.models import OutputSizes
from autoreid.recipes import load_config
from autoreid.search.build import build_search
from autoreid.search.task import SearchTask
from autoreid.training.task import TrainTask, build_training
from tests.helpers.float64 import compute_in_float64
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import (
    assert_equal,
    restarts,
    run_processes,
    run_train,
    run_train_with_signal,
    search_outcome,
    training_outcome,
)
from tests.helpers.tasks import build_search_task, build_training_task
from tests.helpers.tiny import OSNET_TRAINING, tiny_config, write_tiny

#: One step by MSINet's authors' code.
RECORDED = json.loads((Path(__file__).parent / "data/msinet_memory.json").read_text())
#: Nothing but the memory, as MSINet searches.
MEMORY_ONLY = {
    "losses__classification_weight": 0.0,
    "losses__triplet_weight": 0.0,
    "losses__terms": {"memory": 1.0},
}
MSINET = MEMORY_ONLY | {
    "search__alphas_see": "identities",
    "data__synthetic__people__train_identities": 20,
}
#: Both sides have a memory, but not the same settings.
TWO_MEMORIES = {
    "losses__terms": {"memory": 0.5},
    "search__losses": {
        "classification_weight": 0.0,
        "mine_across_ranks": True,
        "terms": {"memory": 1.0},
        "memory_momentum": 0.5,
    },
}
TRAINING = OSNET_TRAINING | {"losses__terms": {"memory": 1.0}}


def memory_loss(labels, size, **settings):
    """The loss with nothing but a memory, and the memory."""
    weights = {"classification_weight": 0.0, "triplet_weight": 0.0, "terms": {"memory": 1.0}}
    loss = build_loss(Losses(**weights, **settings), only_weighted=True)
    loss.prepare(OutputSizes(size), torch.as_tensor(labels))
    return loss, loss.terms["memory"]


def updated_by_hand(centres, embeddings, rows, momentum):
    """The definition of the update, in numpy."""
    centres = np.asarray(centres, dtype=np.float64).copy()
    for embedding, row in zip(np.asarray(embeddings, dtype=np.float64), rows, strict=True):
        moved = momentum * centres[row] + (1 - momentum) * embedding / np.linalg.norm(embedding)
        centres[row] = moved / np.linalg.norm(moved)
    return centres


def sine(step, rows, columns):
    """The numbers of the recorded step, in float64: they were computed in float32."""
    return torch.sin(step * torch.arange(rows * columns).float()).view(rows, columns).double()


@pytest.mark.parametrize("names", [[0, 1, 2, 3, 4], [3, 7, 8, 20, 21]], ids=["all labels", "other labels"])
def test_loss_gradient_and_update_are_those_of_the_authors_code(names):
    loss, memory = memory_loss(names, 8)
    assert (memory.temperature, memory.momentum) == (RECORDED["temperature"], RECORDED["momentum"])
    memory.double()
    memory.centres.copy_(torch.nn.functional.normalize(sine(0.7, 5, 8)))
    inputs, labels = sine(0.3, 6, 8).requires_grad_(), torch.tensor(names)[RECORDED["targets"]]
    values = loss((inputs, torch.zeros(6, 5)), labels)
    values.total.backward()
    assert values.total.item() == pytest.approx(RECORDED["loss"], rel=1e-6)
    assert_close = torch.testing.assert_close
    assert_close(inputs.grad, torch.tensor(RECORDED["input_gradient"]).double(), rtol=1e-6, atol=1e-6)
    before = memory.centres.clone()
    loss((inputs, torch.zeros(6, 5)), labels)
    assert torch.equal(memory.centres, before), "a pass changes nothing"
    loss.update(values.embeddings, labels)
    assert_close(memory.centres, torch.tensor(RECORDED["features_after"]).double(), rtol=1e-6, atol=1e-6)


def test_it_can_be_differentiated_twice():
    loss, memory = memory_loss([0, 1, 2], 4, memory_temperature=0.5)
    memory.double()
    memory.centres.copy_(torch.nn.functional.normalize(sine(0.7, 3, 4)))
    labels = torch.tensor([0, 1, 1])

    def value(embeddings):
        return loss((embeddings, torch.zeros(3, 3)), labels).total

    assert torch.autograd.gradcheck(value, sine(0.3, 3, 4).requires_grad_())
    assert torch.autograd.gradgradcheck(value, sine(0.3, 3, 4).requires_grad_())


def test_under_autocast_it_is_computed_in_float32():
    loss, memory = memory_loss(range(3), 16)
    memory.centres.copy_(torch.nn.functional.normalize(sine(0.7, 3, 16).float()))
    embeddings, labels = sine(0.3, 6, 16).bfloat16(), torch.arange(6) % 3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss((embeddings, torch.zeros(6, 3)), labels).total
    assert torch.equal(found, loss((embeddings.float(), torch.zeros(6, 3)), labels).total)


def _update_a_share(world, embeddings, labels):
    loss, memory = memory_loss(range(3), embeddings.shape[1])
    memory.double()
    loss.update(embeddings.chunk(world.size)[world.rank], labels.chunk(world.size)[world.rank])
    return memory.centres


def test_updates_are_in_the_order_of_the_global_batch():
    embeddings, labels = sine(0.3, 12, 4), torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 1, 1, 0])
    expected = updated_by_hand(np.zeros((3, 4)), embeddings, labels, 0.2)
    assert not np.allclose(
        expected, updated_by_hand(np.zeros((3, 4)), embeddings.flip(0), labels.flip(0), 0.2)
    )
    for found in run_ranks(_update_a_share, 3, embeddings, labels):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


class Recorder:
    """Records the embeddings and labels of each pass of a step, by the loss that computed it."""

    def __init__(self, monkeypatch):
        self.passes = {}
        original = RetrievalLoss.forward

        def forward(loss, outputs, labels, *feature_map):
            self.passes.setdefault(loss, []).append((outputs[0].detach().clone(), labels))
            return original(loss, outputs, labels, *feature_map)

        monkeypatch.setattr(RetrievalLoss, "forward", forward)


def in_batch_order(passes, count, images_per_identity=4):
    """The rows of a batch, from the passes on its micro-batches: identity g is in the pass g mod count."""
    columns = zip(*passes[-count:], strict=True)
    split = [[part.split(images_per_identity) for part in column] for column in columns]
    groups = range(count * len(split[0][0]))
    return tuple(torch.cat([column[g % count][g // count] for g in groups]) for column in split)


def check_update(loss, before, passes, count):
    (memory,) = (term for name, term in loss.terms.items() if name == "memory")
    embeddings, labels = in_batch_order(passes, count)
    rows = [memory.labels.tolist().index(label) for label in labels.tolist()]
    expected = updated_by_hand(before.terms["memory"].centres, embeddings, rows, memory.momentum)
    np.testing.assert_allclose(memory.centres, expected, atol=1e-5)
    assert memory.centres.norm(dim=1).gt(0.99).sum() >= len({*rows})


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({"search__order": "first"}, (1, 1)),
        ({"search__order": "first", "training__accumulation": 2}, (1, 1)),
        ({"search__order": "second"}, (1, 4)),
        ({"search__order": "exact", "training__accumulation": 2}, (1, 2)),
        ({"search__order": "first", "search__relaxation": "gdas"}, (1, 1)),
        ({"search__order": "first", "search__activation_checkpointing": "cell"}, (1, 1)),
    ],
    ids=["first", "first, micro-batches", "second", "exact, micro-batches", "gdas", "recomputed"],
)
def test_a_step_of_a_search_updates_each_memory_once(tmp_path, monkeypatch, changes, passes):
    """The weights' last pass is the real one; the others serve the alphas' gradient."""
    task = build_search_task(tmp_path, **TWO_MEMORIES, **changes)
    state, count = task.state, task.config.training.accumulation
    task.step(StopSignal())
    before = copy.deepcopy([state.alpha_loss, state.loss])
    recorder = Recorder(monkeypatch)
    task.step(StopSignal())
    for loss, old, expected in zip((state.alpha_loss, state.loss), before, passes, strict=True):
        assert len(recorder.passes[loss]) == expected * count
        check_update(loss, old, recorder.passes[loss], count)


@pytest.mark.parametrize("changes", [{"search__level": "single"}, {"search__warmup_epochs": 1}])
def test_alphas_that_do_not_learn_from_images_of_their_own_leave_their_memory_alone(
    tmp_path, monkeypatch, changes
):
    memories = {"losses__terms": {"memory": 0.5}}
    task = build_search_task(tmp_path, **memories, **changes)
    recorder = Recorder(monkeypatch)
    before = copy.deepcopy(task.state.loss)
    task.step(StopSignal())
    check_update(task.state.loss, before, recorder.passes[task.state.loss], 1)
    assert not any(buffer.any() for buffer in task.state.alpha_loss.state_dict().values())


def test_a_step_of_a_training_updates_the_memory_once(tmp_path, monkeypatch):
    task = build_training_task(tmp_path, **TRAINING, training__accumulation=2)
    before, recorder = copy.deepcopy(task.state.loss), Recorder(monkeypatch)
    task.step(StopSignal())
    check_update(task.state.loss, before, recorder.passes[task.state.loss], 2)


@pytest.mark.parametrize("order", ["first", "second", "exact", "training"])
def test_a_dry_run_updates_nothing(tmp_path, order):
    training = order == "training"
    task = (
        build_training_task(tmp_path, **TRAINING)
        if training
        else build_search_task(tmp_path, **TWO_MEMORIES, search__order=order)
    )
    task.step(StopSignal())
    before = copy.deepcopy(task.state.loss.state_dict())
    assert before["terms.memory.centres"].any()
    of_alphas = None if training else copy.deepcopy(task.state.alpha_loss.state_dict())
    task.dry_run(iter([task.state.stream.preview()] * 2))
    assert_equal(task.state.loss.state_dict(), before)
    if of_alphas is not None:
        assert_equal(task.state.alpha_loss.state_dict(), of_alphas)


def test_each_side_has_centres_for_its_own_identities_only(tmp_path):
    state = build_search_task(tmp_path, **MSINET).state
    weights, alphas = state.loss.terms["memory"], state.alpha_loss.terms["memory"]
    # 16 identities: 3 for the weights, 6 for the alphas, 7 for both.
    assert weights.labels.tolist() == list(range(10))
    assert len(alphas.labels) == 13
    assert len({*alphas.labels.tolist()} & {*range(10)}) == 7
    size = state.network.embedding_size
    assert (weights.centres.shape, alphas.centres.shape) == ((10, size), (13, size))


def _run_in_float64(world, path):
    """Three steps: in the first one, the memory is empty."""
    compute_in_float64()
    config = load_config(path)
    if config.task == "train":
        task = build_training(config, build_training_data(config, world), world)
    else:
        task = build_search(config, build_search_data(config, world), world)
    for _ in range(3):
        task.step(StopSignal())
    parts = ("network", "loss") if config.task == "train" else ("network", "loss", "alphas", "alpha_loss")
    return {name: getattr(task.state, name).state_dict() for name in parts}


@pytest.mark.parametrize(
    "changes",
    [
        MSINET | {"training__accumulation": 2},
        TRAINING,
        pytest.param(TWO_MEMORIES | {"search__order": "exact"}, marks=pytest.mark.slow),
        pytest.param(MSINET | {"search__order": "second"}, marks=pytest.mark.slow),
    ],
    ids=["search", "training", "exact", "second"],
)
def test_two_ranks_compute_what_one_process_computes(tmp_path, changes):
    tiny_config(tmp_path, **changes)
    path = write_tiny(tmp_path, **changes)
    (alone,) = run_ranks(_run_in_float64, 1, path)
    assert alone["loss"]["terms.memory.centres"].any()
    # Finite differences divide rounding by a small step.
    tolerance = {"rtol": 1e-6, "atol": 1e-8} if "second" in changes.values() else {"rtol": 1e-9, "atol": 1e-9}
    results = run_ranks(_run_in_float64, 2, path)
    assert_equal(results[0]["loss"], results[1]["loss"])
    for found in results:
        torch.testing.assert_close(found, alone, **tolerance)


@pytest.mark.parametrize("build", [build_search_task, build_training_task])
def test_resumed_in_the_middle_of_an_epoch_it_goes_on_bit_for_bit(tmp_path, build):
    changes = TRAINING if build is build_training_task else MSINET | {"search__order": "first"}
    task = build(tmp_path, **changes)
    for _ in range(2):
        task.step(StopSignal())
    assert 0 < task.state.step_in_epoch < task.state.steps_per_epoch
    file = io.BytesIO()
    torch.save(task.state.state_dict(), file)
    task.step(StopSignal())
    resumed = build(tmp_path, **changes)
    resumed.state.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    resumed.step(StopSignal())
    expected, found = task.state.state_dict(), resumed.state.state_dict()
    assert expected["loss"]["terms.memory.centres"].any()
    for state in (expected, found):
        del state["seconds"]
    assert_equal(found, expected)


def test_checkpoints_from_before_losses_had_a_state_are_read(tmp_path):
    task = build_search_task(tmp_path)
    saved = task.state.state_dict()
    assert saved.pop("loss") == saved.pop("alpha_loss") == {}
    task.state.load_state_dict(saved)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [SearchTask, TrainTask])
def test_killed_it_ends_bit_for_bit_the_same(tmp_path, kind):
    calm, struck = tmp_path / "calm", tmp_path / "struck"
    changes = TRAINING if kind is TrainTask else MSINET
    for folder in (calm, struck):
        folder.mkdir()
    assert run_processes(run_train, write_tiny(calm, **changes)) == [0]
    path = write_tiny(struck, **changes, checkpoint__every_steps=1)
    exit_codes = run_processes(run_train_with_signal, path, 3, signal.SIGKILL, 0, kind)
    assert exit_codes == [-signal.SIGKILL]
    assert run_processes(run_train, path) == [0]
    assert restarts(struck) == 1
    if kind is TrainTask:
        assert_equal(training_outcome(struck), training_outcome(calm))
        return
    saved = (calm / "runs/tiny/checkpoints").glob("step-*.pt")
    steps = max(int(path.stem.removeprefix("step-")) for path in saved)
    assert_equal(search_outcome(struck, steps), search_outcome(calm, steps))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"losses__memory_momentum": 0.5},
            r"losses\.memory_momentum: needs the term memory, such as terms: \{memory: 1\.0\}",
        ),
        (
            {"search__losses": {"memory_temperature": 0.1}},
            r"search\.losses\.memory_temperature: needs the term memory",
        ),
        (
            {"losses__classification_weight": 0.0, "losses__triplet_weight": 0.0},
            r"losses\.terms: need a weight above 0",
        ),
        (MEMORY_ONLY | {"losses__memory_temperature": 0.0}, r"losses\.memory_temperature"),
        (MEMORY_ONLY | {"losses__memory_momentum": 1.0}, r"losses\.memory_momentum"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(write_tiny(tmp_path, **changes))
    assert "\n" not in str(caught.value)
