"""The cost of evaluated networks: how passes are timed, and where `autoreid.evaluate --latency` shows it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import autoreid
from autoreid.config import SyntheticPeople
from autoreid.data.synthetic.people import write_synthetic_people
from autoreid.deployment.metadata import Metadata
from autoreid.evaluate import main
from autoreid.evaluation import latency
from autoreid.evaluation.latency import Latency, measure_latency, time_pass
from autoreid.networks import load_network
from autoreid.reporting.cost_report import NetworkCost, cost_figure, cost_rows
from tests.helpers.onnx_files import edited
from tests.helpers.trained import HEIGHT, WIDTH, small_network, write_checkpoint

CPU, GPU = torch.device("cpu"), torch.device("cuda")
ON_CPU = ["--device", "cpu", "--workers", "0"]


class Machine:
    """A clock, and passes that take the given milliseconds by it, one after the other."""

    def __init__(self, *times: float) -> None:
        self.now, self.times = 0.0, list(times)

    def run(self) -> None:
        self.now += self.times.pop(0) / 1e3

    def clock(self) -> float:
        return self.now


def test_the_percentiles_are_those_of_the_passes_after_the_warm_up():
    rng = np.random.default_rng(0)
    machine = Machine(9000, 8000, 7000, *rng.permutation(np.arange(1.0, 101.0)))
    found = measure_latency(machine.run, 4, CPU, machine.clock)
    # Of 1, 2, ..., 100, at positions 49.5 and 94.05, counted from 0.
    assert found == pytest.approx(Latency(4, 50.5, 95.05, 100))


def test_the_95th_percentile_shows_a_few_slow_passes_and_the_median_does_not():
    machine = Machine(*[5.0] * 3, *[5.0] * 93, *[50.0] * 7)
    found = measure_latency(machine.run, 1, CPU, machine.clock)
    assert (found.p50, found.p95) == pytest.approx((5.0, 50.0))


@pytest.mark.parametrize(("milliseconds", "passes"), [(1.0, 100), (250.0, 40), (3000.0, 20)])
def test_slow_networks_are_timed_less_often(milliseconds, passes):
    machine = Machine(*[milliseconds] * 200)
    found = measure_latency(machine.run, 1, CPU, machine.clock)
    assert found == pytest.approx(Latency(1, milliseconds, milliseconds, passes))


def test_a_pass_lasts_until_the_gpu_has_finished_and_starts_when_it_is_idle(monkeypatch):
    machine, queued = Machine(), [70.0]

    def synchronise(device):
        assert device == GPU
        machine.now += sum(queued) / 1e3
        queued.clear()

    monkeypatch.setattr(torch.cuda, "synchronize", synchronise)
    assert time_pass(lambda: queued.append(20.0), GPU, machine.clock) == pytest.approx(20.0)


@pytest.fixture(scope="module")
def world_of(tmp_path_factory):
    folder = tmp_path_factory.mktemp("latency")
    people = SyntheticPeople(
        train_identities=1, test_identities=3, images_per_identity=4, cameras=2, height=HEIGHT, width=WIDTH
    )
    write_synthetic_people(folder / "people", people)
    for seed in (0, 1):
        write_checkpoint(folder / f"net{seed}" / "checkpoints/best.pt", small_network(seed))
    return folder


@pytest.fixture
def line(world_of, monkeypatch):
    """The command line that evaluates both networks; each is timed only a few times."""
    monkeypatch.setattr(latency, "LEAST", 2)
    monkeypatch.setattr(latency, "MOST", 3)
    checkpoints = [f"--checkpoint={world_of / name}" for name in ("net0", "net1")]
    return [*checkpoints, "--data", str(world_of / "people"), *ON_CPU]


@pytest.mark.slow
def test_costs_are_in_the_table_and_the_files_and_nothing_else_changes(world_of, line, tmp_path, capsys):
    line += ["--rows", "1"]
    assert main([*line, "--output", str(tmp_path / "plain")]) == 0
    plain = capsys.readouterr().out
    assert main([*line, "--output", str(tmp_path / "out"), "--latency"]) == 0
    printed = capsys.readouterr().out

    result = json.loads((tmp_path / "out/result.json").read_text())
    assert {"results": result["results"]} == json.loads((tmp_path / "plain/result.json").read_text())
    network = autoreid.load(world_of / "net0").network
    own = {name: value for name, value in network.named_parameters() if "classifier" not in name}
    parameters = sum(value.numel() for name, value in own.items() if "auxiliary" not in name)
    threads = torch.get_num_threads()
    for name, cost in zip(("net0", "net1"), result["costs"], strict=True):
        assert (cost["source"], cost["parameters"], cost["onnx"]) == (name, parameters, False)
        assert cost["device"] == f"CPU, {threads} thread{'s' if threads > 1 else ''}"
        assert [one["batch"] for one in cost["latency"]] == [1, 32]
        assert all(0 < one["p50_ms"] <= one["p95_ms"] for one in cost["latency"])
        assert all(2 <= one["passes"] <= 3 for one in cost["latency"])

    assert printed.startswith(plain.rstrip("\n"))
    head, *rows = printed[len(plain) :].strip().splitlines()
    assert head.startswith("cost  M parameters  GMACs")
    assert [row.split()[0] for row in rows] == ["net0", "net1"]
    assert f"{parameters / 1e6:.2f}" in rows[0]
    files = {folder: {path.name for path in (tmp_path / folder).iterdir()} for folder in ("plain", "out")}
    assert files["out"] - files["plain"] == {"cost.png"}
    assert (tmp_path / "out/cost.png").stat().st_size > 5000


@pytest.fixture(scope="module")
def exported(world_of):
    """The file of net1, for pictures of any size."""
    pytest.importorskip("onnxruntime")
    from autoreid.deployment.onnx_export import export_onnx

    network, config, _ = load_network(world_of / "net1")
    path = world_of / "net1.onnx"
    path.write_bytes(export_onnx(network, Metadata.of(config, "resize", "BGR")))
    return path


def test_an_exported_file_has_a_row_of_its_own(line, exported, capsys, caplog):
    assert main([*line, "--latency", f"--onnx=net1={exported}", "--json"]) == 0
    plain, exported_of, row = json.loads(capsys.readouterr().out)["costs"]
    assert (plain["source"], exported_of["source"], row["source"]) == ("net0", "net1", "net1")
    assert (exported_of["onnx"], row["onnx"]) == (False, True)
    assert row["parameters"] == exported_of["parameters"]
    assert row["device"] == f"ONNX Runtime, {plain['device']}"
    assert row["cosine"] == pytest.approx(1, abs=1e-4)
    assert exported_of["cosine"] is None
    assert "embeddings differ" not in caplog.text


def test_a_file_with_other_weights_is_reported(line, exported, capsys, caplog):
    """Of a network with the same options, but another training."""
    assert main([*line, "--latency", f"--onnx=net0={exported}", "--json"]) == 0
    (row,) = [cost for cost in json.loads(capsys.readouterr().out)["costs"] if cost["onnx"]]
    assert row["cosine"] < 0.99
    warning = f"its embeddings differ from those of net0: smallest cosine {row['cosine']:.4f} for 6 images"
    assert warning in caplog.text


def test_a_file_that_computes_no_numbers_is_an_error(line, exported, tmp_path, capsys):
    import onnx

    model = onnx.load_from_string(exported.read_bytes())
    for weight in model.graph.initializer:
        if weight.name.endswith("stem.0.weight"):
            weight.raw_data = np.full(weight.dims, np.nan, np.float32).tobytes()
    path = tmp_path / "found.onnx"
    path.write_bytes(model.SerializeToString())
    assert main([*line, "--latency", f"--onnx=net1={path}"]) == 2
    assert "found.onnx: its embeddings or those of net1 are not finite" in capsys.readouterr().err


def test_wrong_options_and_files_are_one_line(line, exported, tmp_path, capsys):
    (tmp_path / "text.onnx").write_text("text")
    (tmp_path / "other.onnx").write_bytes(edited(exported.read_bytes(), autoreid_version=None))
    for more, message in (
        (["--onnx", f"net0={exported}"], "--onnx: requires --latency"),
        (["--latency", "--onnx", f"{exported}"], "no --checkpoint has the name net1.onnx"),
        (["--latency", "--onnx", f"net0={tmp_path / 'none.onnx'}"], "no such file or folder"),
        (["--latency", "--onnx", f"net1={tmp_path / 'text.onnx'}"], "text.onnx: ONNX Runtime cannot read"),
        (
            ["--latency", "--onnx", f"net1={tmp_path / 'other.onnx'}"],
            "other.onnx: has no metadata of autoreid",
        ),
    ):
        assert main([*line, *more]) == 2
        printed = capsys.readouterr()
        assert message in printed.err.splitlines()[-1]
        assert printed.out == ""
    assert main(["--query", str(exported), "--gallery", str(exported), "--latency"]) == 2
    assert "--latency: requires --checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"height": str(HEIGHT + 8)},
            f"takes images of {HEIGHT + 8}x{WIDTH} pixels, but net0 those of {HEIGHT}x{WIDTH}",
        ),
        ({"network": "pcb"}, "contains the network pcb, but net0 is derived"),
        ({"network_options": "{}"}, "its network derived has other options or another genotype than net0"),
    ],
)
def test_the_file_of_another_network_is_not_measured(line, exported, tmp_path, capsys, entries, message):
    path = tmp_path / "found.onnx"
    path.write_bytes(edited(exported.read_bytes(), **entries))
    assert main([*line, "--latency", f"--onnx=net0={path}", "--json"]) == 2
    printed = capsys.readouterr()
    assert f"found.onnx: {message}; export this checkpoint again" in printed.err
    shown = json.loads(printed.out)
    assert [cell["source"] for cell in shown["results"]] == ["net0", "net1"]
    assert [cost["source"] for cost in shown["costs"]] == ["net1"]


def cost(source, parameters, milliseconds, is_onnx=False):
    latencies = [Latency(1, milliseconds, 2 * milliseconds, 20), Latency(32, 1234.5, 1300.0, 20)]
    return NetworkCost(source, parameters, 3 * 10**9, "CPU, 2 threads", latencies, is_onnx)


COSTS = [cost("small", 2_000_000, 5.0), cost("large", 24_000_000, 40.0), cost("large", 24_000_000, 9.0, True)]


def test_the_table_has_a_row_for_each_network():
    _, *rows = cost_rows(COSTS)
    assert rows[0] == ["small", "2.00", "3.000", "5.00 / 10.0", "1234 / 1300", "CPU, 2 threads"]
    assert rows[2][0] == "large, ONNX"


def test_the_picture_has_a_point_for_each_network_at_its_cost_in_each_data_set():
    pytest.importorskip("matplotlib")
    maps = {("small", "a"): 0.3, ("large", "a"): 0.5, ("small", "b"): 0.2}
    figure = cost_figure(COSTS, maps)
    panels = figure.axes
    assert [axes.get_xlabel() for axes in panels[3:5]] == ["M parameters", "GMACs"]
    assert [axes.get_ylabel() for axes in panels[::3]] == ["mAP in % on a", "mAP in % on b"]

    def points(axes):
        return {line.get_label(): (*line.get_xdata(), *line.get_ydata()) for line in axes.lines}

    assert points(panels[0]) == {"small": (2.0, 30.0), "large": (24.0, 50.0)}
    assert points(panels[2]) == {"small": (5.0, 30.0), "large": (40.0, 50.0), "large, ONNX": (9.0, 50.0)}
    assert points(panels[5]) == {"small": (5.0, 20.0)}
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.texts} == {"small", "large", "large, ONNX"}
