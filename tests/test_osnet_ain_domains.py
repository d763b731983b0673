import pytest

from autoreid.errors import ConfigError
from autoreid.spaces.osnet_ain.genotype import OsnetAinGenotype
from benchmarks import osnet_ain_domains
from benchmarks.osnet_ain_domains import FIXED, fill, parse, recipe, summary
from benchmarks.results_folder import ResultsFolder
from benchmarks.trainings import Found, Trained


def test_both_recipes_get_the_shift_and_the_test_people(tmp_path):
    line = ["--search-epochs", "8", "--test-people", "100", "--shift", "local", "data.height=96"]
    arguments = parse([*line, "search.osnet_ain.stem_norm=instance_norm"])
    for path in (osnet_ain_domains.SEARCH, osnet_ain_domains.TRAINING):
        config = recipe(path, tmp_path, 8, arguments)
        assert {(people.shift, people.test_identities) for people in config.data.synthetic.values()} == {
            ("local", 100)
        }
        assert (config.training.epochs, config.evaluation.every_epochs, config.data.height) == (8, 8, 96)
        assert config.data.targets == ("people_c", "people_a")
        assert "people_c" not in config.data.sources
        assert config.search.osnet_ain.stem_norm == "instance_norm"


def test_the_published_genotype_is_that_of_the_repository():
    published = OsnetAinGenotype.load(osnet_ain_domains.ROOT / "searched_genotypes/published/osnet_ain.json")
    assert FIXED["OSNet-AIN"] == published.blocks


def test_a_network_of_the_command_line():
    networks = parse(
        ["--network", "mixed=in_after,in_inside*2,plain*3", "--network", "all=in_both*6"]
    ).networks
    assert networks["mixed"] == ("in_after", "in_inside", "in_inside", "plain", "plain", "plain")
    assert networks["all"] == ("in_both",) * 6
    for wrong in ("none=plain*5", "none=batch*6"):
        with pytest.raises(SystemExit):
            parse(["--network", wrong])


def test_means_and_standard_errors_are_over_searches_and_gains_are_paired():
    lines = [
        {"network": network, "seed": seed, "seen": 0.5, "unseen": value}
        for network, values in {
            "IN in the stem": (0.1, 0.3),
            "random": (0.2, 0.2),
            "found": (0.2, 0.5),
        }.items()
        for seed, value in enumerate(values)
    ]
    searches = [{"search": 0, "blocks": ["plain"] * 6, "stem": "batch_norm", "in_share": 0.4}]
    report = summary(searches, lines)
    found = report["networks"]["found"]
    assert found["unseen"] == {"mean": pytest.approx(0.35), "error": pytest.approx(0.15), "n": 2}
    assert found["beyond IN in the stem"] == {
        "mean": pytest.approx(0.15),
        "error": pytest.approx(0.05),
        "n": 2,
    }
    assert found["beyond random"] == {"mean": pytest.approx(0.15), "error": pytest.approx(0.15), "n": 2}
    assert found["seen"]["error"] == 0
    assert report["in_share"] == {"mean": 0.4, "error": None, "n": 1}
    assert report["blocks_with_in"]["mean"] == 0
    assert report["stems_with_in"] == 0


def test_searches_and_trainings_resume(tmp_path, monkeypatch):
    searched, trained = [], []

    def search(config, world):
        searched.append(config.seed)
        return Found(OsnetAinGenotype.of_blocks(["in_after"] * 6, "batch_norm"), {"blocks": None}, 0, 1.0)

    def train(config, world):
        trained.append((config.model.name, config.seed))
        if len(trained) == 3:
            raise KeyboardInterrupt
        return Trained(0.2, {"people_a": 0.3, "people_c": 0.1}, 1000, 1.0)

    monkeypatch.setattr(osnet_ain_domains, "train_network", train)
    monkeypatch.setattr(osnet_ain_domains, "search_genotype", search)
    monkeypatch.setattr(osnet_ain_domains, "in_share", lambda probabilities: 0.5)
    arguments = parse(["--searches", "1", "--trainings", "2"])
    folder = ResultsFolder(tmp_path, {})
    with pytest.raises(KeyboardInterrupt):
        fill(folder, arguments, world=None)
    fill(folder, arguments, world=None)
    assert searched == [0]
    lines = folder.read(osnet_ain_domains.TRAININGS)
    assert [(line["network"], line["seed"]) for line in lines] == [
        *((network, 0) for network in (*FIXED, "found", "random")),
        *((network, 1) for network in FIXED),
    ]
    assert len(trained) == len(lines) + 1
    assert trained[0] == ("osnet_x0_25", 0)
    arguments.networks = {"OSNet-AIN": ("in_both",) * 6}
    with pytest.raises(ConfigError, match=r"OSNet-AIN=in_both,.* are from in_inside,.*another name"):
        fill(folder, arguments, world=None)
