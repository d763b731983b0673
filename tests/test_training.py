"""Training fixed networks: schedules, frozen backbones, moving averages, ranks, resuming."""

import math
import signal

import pytest
import torch

from autoreid import train
from autoreid.config import Training
from autoreid.distributed import StopSignal
from autoreid.recipes import load_config
from autoreid.reporting.history import read_history
from autoreid.reporting.run_folder import RunFolder
from autoreid.spaces.build import build_model
from autoreid.training.build import build_optimizer
from autoreid.training.schedules import learning_rate
from autoreid.training.task import TrainTask
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import assert_equal, run_processes, run_train, run_train_with_signal, training_outcome
from tests.helpers.tasks import build_training_task, train_in_float64
from tests.helpers.tiny import OSNET_TRAINING, tiny_config, write_tiny


@pytest.mark.slow
def test_a_killed_training_resumes_bit_for_bit(tmp_path):
    folders = [tmp_path / "uninterrupted", tmp_path / "killed"]
    changes = OSNET_TRAINING | {
        "training__ema_decay": 0.9,
        "training__frozen_epochs": 1,
        "checkpoint__every_steps": 2,
    }
    for folder in folders:
        folder.mkdir()
        write_tiny(folder, **changes)
    assert run_processes(run_train, folders[0] / "tiny.yaml") == [0]
    path = folders[1] / "tiny.yaml"
    exit_codes = run_processes(run_train_with_signal, path, 4, signal.SIGKILL, 0, TrainTask)
    assert exit_codes == [-signal.SIGKILL]
    assert run_processes(run_train, path) == [0]
    uninterrupted, killed = (training_outcome(folder) for folder in folders)
    assert_equal(killed, uninterrupted)
    assert uninterrupted["result"]["network"] == "osnet_x0_25"
    assert uninterrupted["result"]["parameters"] == pytest.approx(0.2e6, rel=0.1)
    assert uninterrupted["result"]["macs"] == pytest.approx(0.08e9 / 16, rel=0.1), (
        "64×32 is a sixteenth of 256×128"
    )


def test_ranks_train_what_one_process_trains(tmp_path):
    tiny_config(tmp_path, **OSNET_TRAINING)
    path = write_tiny(tmp_path, **OSNET_TRAINING)
    (alone,) = run_ranks(train_in_float64, 1, path)
    for weights in run_ranks(train_in_float64, 2, path):
        for name, value in weights.items():
            torch.testing.assert_close(value, alone[name], rtol=1e-8, atol=1e-10)


def test_a_frozen_backbone_keeps_weights_and_statistics(tmp_path):
    task = build_training_task(tmp_path, training__frozen_epochs=1)
    before = {name: value.clone() for name, value in task.state.network.state_dict().items()}
    task.step(StopSignal())
    changed = {
        name for name, value in task.state.network.state_dict().items() if not value.equal(before[name])
    }
    assert changed == {"classifier.weight", "classifier.bias"}
    task.state.epoch = 1
    task.step(StopSignal())
    after = task.state.network.state_dict()
    assert all(not after[name].equal(before[name]) for name in before if name.endswith("weight"))


def test_the_moving_average_follows_its_definition(tmp_path):
    task = build_training_task(tmp_path, training__ema_decay=0.75)
    name = "classifier.weight"
    average = task.state.network.state_dict()[name].clone()
    for step in range(3):
        task.step(StopSignal())
        now = task.state.network.state_dict()[name]
        # The first update copies the weights.
        average = now.clone() if step == 0 else 0.75 * average + 0.25 * now
    torch.testing.assert_close(task.state.ema.module.state_dict()[name], average)
    for name, buffer in task.state.network.named_buffers():
        assert task.state.ema.module.get_buffer(name).equal(buffer), "buffers are copied, not averaged"


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "amsgrad", "adamw"])
def test_the_learning_rate_of_the_backbone_is_scaled(tmp_path, optimizer):
    rate = 1e-3
    task = build_training_task(
        tmp_path,
        training__optimizer=optimizer,
        training__backbone_scale=0.0,
        training__learning_rate=rate,
        training__final_learning_rate=0.0,
    )
    before = {name: value.detach().clone() for name, value in task.state.network.named_parameters()}
    task.step(StopSignal())
    for name, value in task.state.network.named_parameters():
        assert value.equal(before[name]) == (not name.startswith("classifier")), name
    assert {group["part"]: group["lr"] for group in task.state.weight_optimizer.param_groups} == {
        "backbone": 0.0,
        "head": rate,
    }


def adam_by_hand(weight, gradients, rate, decay, amsgrad=False, decoupled=False):
    """Adam (arXiv 1412.6980, algorithm 1), AMSGrad (Reddi et al., 2018) and AdamW (arXiv 1711.05101, algorithm 2)."""
    mean = square = largest = torch.zeros_like(weight)
    for step, gradient in enumerate(gradients, start=1):
        if decoupled:
            weight = weight - rate * decay * weight
        else:
            gradient = gradient + decay * weight
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        largest = torch.maximum(largest, square)
        deviation = ((largest if amsgrad else square) / (1 - 0.999**step)).sqrt()
        weight = weight - rate * (mean / (1 - 0.9**step)) / (deviation + 1e-8)
    return weight


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [("adam", {}), ("amsgrad", {"amsgrad": True}), ("adamw", {"decoupled": True})],
)
def test_variants_of_adam_follow_their_papers(optimizer, options):
    network, loss = build_model("osnet_x0_25", 4).double(), torch.nn.Identity()
    settings = Training(optimizer=optimizer, learning_rate=0.1, weight_decay=0.5)
    built = build_optimizer(settings, network, loss)
    weight = network.classifier.weight
    before = weight.detach().clone()
    gradients = torch.randn(3, *weight.shape, dtype=torch.float64) * torch.tensor([3, 0.1, 1])[:, None, None]
    for gradient in gradients:
        weight.grad = gradient.clone()
        built.step()
    torch.testing.assert_close(weight.detach(), adam_by_hand(before, gradients, 0.1, 0.5, **options))


@pytest.mark.parametrize(
    ("name", "options"),
    [("pcb", {"parts": 3}), ("mgn", {}), ("resnet50", {"last_stride": 1}), ("osnet_ain_x0_25", {})],
)
def test_other_networks_take_a_step(tmp_path, name, options):
    task = build_training_task(tmp_path, model={"name": name, "options": options})
    _, metrics = task.step(StopSignal())
    assert torch.isfinite(metrics).all()
    assert metrics[0] == pytest.approx(0.5 * (metrics[1] + metrics[2]).item())
    assert metrics[1] == pytest.approx(math.log(12), abs=2.5), "near chance level for twelve identities"


def test_settings_that_the_optimiser_and_the_schedule_ignore_are_logged(tmp_path, caplog):
    ignored = {"training__momentum": 0.5, "training__nesterov": True, "training__milestones": [1]}
    build_training_task(tmp_path, **ignored, training__optimizer="adam")
    lines = [record.message for record in caplog.records if "no effect" in record.message]
    assert sorted(lines) == [
        "training.milestones has no effect with training.schedule: cosine",
        "training.momentum has no effect with training.optimizer: adam",
        "training.nesterov has no effect with training.optimizer: adam",
    ]
    steps = {"training__schedule": "step", "training__decay": 0.5, "training__final_learning_rate": 0.0}
    assert Training(schedule="step", learning_rate=1e-4).unused() == {}, "below the default of the final rate"
    caplog.clear()
    build_training_task(tmp_path, **ignored, **steps)
    lines = [record.message for record in caplog.records if "no effect" in record.message]
    assert lines == ["training.final_learning_rate has no effect with training.schedule: step"]


def test_schedules_by_their_formulas():
    base = {"epochs": 10, "learning_rate": 0.4, "final_learning_rate": 0.1}
    cosine = Training(**base, warmup_epochs=2)
    for step in range(50):
        expected = 0.1 + 0.15 * (1 + math.cos(math.pi * step / 50)) * 1.0
        expected *= min((step + 1) / 10, 1)
        assert learning_rate(cosine, step, 5) == pytest.approx(expected)
    flat = Training(**base, flat_epochs=4, warmup_epochs=2)
    for step in range(50):
        lowered = 0.1 + 0.15 * (1 + math.cos(math.pi * max(step - 20, 0) / 30))
        assert learning_rate(flat, step, 5) == pytest.approx(lowered * min((step + 1) / 10, 1))
    steps = Training(**base, schedule="step", milestones=(4, 6), decay=0.5)
    rates = [learning_rate(steps, epoch * 5, 5) for epoch in range(8)]
    assert rates == pytest.approx([0.4] * 4 + [0.2] * 2 + [0.1] * 2)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.name=resnet51", "did you mean resnet50"),
        ("model.options.last_strid=1", "last_strid"),
        ("model.weights=/nowhere.pth", "/nowhere.pth"),
    ],
)
def test_an_invalid_network_is_reported_in_one_line_with_status_2(tmp_path, capsys, override, message):
    tiny_config(tmp_path, **OSNET_TRAINING)
    path = write_tiny(tmp_path, **OSNET_TRAINING)
    assert train.main(["--config", str(path), "model.name=resnet50", override]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    folder = RunFolder(tmp_path / "runs/tiny")
    assert [event.kind for event in read_history(folder.root)] == ["started", "failed"]
    folder.check_claim(load_config(path))  # the corrected config may take the name
