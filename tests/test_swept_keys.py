"""The values of --sweep: YAML lists, ranges, and the names of runs."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from autoreid.errors import ConfigError
from autoreid.sweeps.sweep import combinations, run_name
from autoreid.sweeps.swept_key import SweptValue, parse_swept_keys
from autoreid.yaml_values import parse_value, split_values

NUMBERS = st.integers(-(10**6), 10**6) | st.floats(allow_nan=False, allow_infinity=False, width=32)
SCALARS = (
    NUMBERS
    | st.booleans()
    | st.none()
    | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=9)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
TASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def values_of(sweep):
    (swept,) = parse_swept_keys([sweep], [])
    return [value.value for value in swept.values]


@given(st.lists(VALUES, min_size=1, max_size=5), st.sampled_from([",", ", ", " , "]))
@example(["a,b", "it's", 'say "hi, you"', "# no comment", "[", "0..4"], ",")
@example([[1, [2, 3]], {"a": [1, 2], "b": "x,y"}, []], ",")
def test_values_of_json_are_split_and_read_back(values, comma):
    """JSON is YAML: a list of it, without the brackets, is what --sweep takes."""
    texts = [json.dumps(value) for value in values]
    split = split_values(comma.join(texts), "here")
    assert split == texts
    assert [parse_value(text, "here") for text in split] == values
    assert values_of(f"model.options={comma.join(texts)}") == values


@given(st.integers(-50, 50), st.integers(0, 60), st.integers(0, 9))
def test_ranges_have_both_ends(first, more, single):
    assert values_of(f"seed={single},{first}..{first + more}") == [single, *range(first, first + more + 1)]


@pytest.mark.parametrize(
    ("sweep", "values"),
    [
        ("search.alpha_learning_rate=3e-4,0.02", [3e-4, 0.02]),
        ("search.reid_cell.cells_per_stage=[1,1],[2, 2]", [[1, 1], [2, 2]]),
        ("search.channels=8,16", [8, 16]),  # an older name of search.reid_cell.channels
        ("losses.normalise=true,false", [True, False]),
        ("model.weights=none,a.pth,'none'", [None, "a.pth", "none"]),
        ("model.name=osnet_x0_25,resnet50", ["osnet_x0_25", "resnet50"]),
        ("data.root=/a b/c,'/d,e'", ["/a b/c", "/d,e"]),
        (
            "model.options={channels: 4},{channels: 8, stem: darts}",
            [{"channels": 4}, {"channels": 8, "stem": "darts"}],
        ),
        ("task_number=010,0..1", [10, 0, 1]),
    ],
)
def test_values_are_those_that_an_override_would_have(sweep, values):
    assert values_of(sweep) == values


@pytest.mark.parametrize(
    ("sweeps", "message"),
    [
        (["seed"], "--sweep 'seed': expected section.key=VALUE,VALUE,..."),
        (["=1,2"], "expected section.key=VALUE"),
        (["seed="], "expected section.key=VALUE"),
        (["seed= "], "--sweep seed: no value"),
        (["seed=1,,2"], "'1,,2' is not a list of YAML values"),
        (["seed=[1,2"], "'[1,2' is not a list of YAML values"),
        (["seed=1]"], "'1]' is not a list of YAML values"),
        (["seed=1] # [2"], "# begins a comment"),
        (["seed=4..0"], "--sweep seed: 4..0: the first number must not exceed the last; expected 0..4"),
        (["seed=0..99999999999"], "100000000000 values; expected at most 10000"),
        (["seed=0..999", "data.batch_size=1..99"], "99000 combinations; expected at most 10000"),
        (["seed=1", "seed=2"], "--sweep seed and --sweep seed set the same key"),
        (["search.channels=4", "search.reid_cell.channels=8"], "set the same key"),
        (["search.reid_cell.channels=4", "search={order: first}"], "set the same key"),
        (["training.epochs=2"], "training.epochs is set, but --sweep training.epochs sweeps it"),
        (["training={epochs: 2}"], "training.epochs is set, but --sweep training sweeps it"),
        (["task=search,train"], "--sweep task: a sweep has runs of one task"),
        (["task_name=a,b"], "--sweep task_name: a sweep names its runs by their values"),
        (["output_dir=a,b"], "--sweep output_dir: all runs of a sweep are in its folder"),
    ],
)
def test_mistakes_are_one_line_each(sweeps, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as raised:
        combinations(parse_swept_keys(sweeps, ["training.epochs=1"]))
    assert "\n" not in str(raised.value)


def test_the_product_and_its_names_do_not_depend_on_the_order_of_the_keys():
    sweeps = [
        "seed=0..1",
        "search.alpha_learning_rate=3e-4,0.02",
        "search.reid_cell.cells_per_stage=[1,1],[2,2]",
    ]
    names = [
        [run_name(one) for one in combinations(parse_swept_keys(order, []))]
        for order in (sweeps, sweeps[::-1])
    ]
    assert names[0] == names[1]
    assert names[0] == [
        f"alpha_learning_rate-{rate}__cells_per_stage-{cells}__seed-{seed}"
        for rate in ("0.0003", "0.02")
        for cells in ("1-1", "2-2")
        for seed in (0, 1)
    ]
    same_end = parse_swept_keys(["losses.triplet_weight=1", "search.losses.triplet_weight=2"], [])
    assert [run_name(one) for one in combinations(same_end)] == [
        "losses.triplet_weight-1__search.losses.triplet_weight-2"
    ]


@given(st.lists(VALUES, min_size=2, max_size=2, unique_by=lambda value: json.dumps(value)))
def test_names_are_valid_and_short_and_differ_with_the_scalars(values):
    names = [SweptValue("", value).name for value in values]
    assert all(len(name) <= 47 and TASK_NAME.fullmatch(f"key-{name}") for name in names)
    labels = [SweptValue("", value).label for value in values]
    if not any(isinstance(value, list) for value in values) and labels[0] != labels[1]:
        assert names[0] != names[1]


def test_a_long_value_has_a_short_name_with_a_digest():
    name = SweptValue("", "/data/" + "x" * 300).name
    assert re.fullmatch(r"data-x+-[0-9a-f]{6}", name)
    assert len(name) == 40


def test_the_name_of_a_run_with_many_keys_is_a_valid_task_name():
    keys = [f"model.options={{channels: {'9' * 60}}}", *(f"k.key{n}={'x' * 30}a" for n in range(8))]
    names = [
        run_name(one)
        for last in ("0", "1")
        for one in combinations(parse_swept_keys([*keys, f"k.zzz={last}"], []))
    ]
    assert len({*names}) == 2
    assert all(len(name) == 200 and TASK_NAME.fullmatch(name) for name in names)
