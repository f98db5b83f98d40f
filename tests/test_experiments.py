"""The experiments that `python -m iclbook reproduce` runs, and their committed results."""

import json

import pytest

from iclbook.__main__ import registry
from iclbook.claims import load
from iclbook.sweep import Experiment, results

KNOWN = registry()
EXPERIMENTS = {experiment.name: experiment for experiment in KNOWN.values()}


def test_every_experiment_stands_behind_a_row() -> None:
    assert KNOWN.keys() <= {row.id for row in load()}
    assert EXPERIMENTS.keys() <= KNOWN.keys()


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("size", ["small", "full"])
def test_cells_are_different_and_have_the_seeds_asked_for(name: str, size: str) -> None:
    cells = getattr(EXPERIMENTS[name], size)(3)
    texts = [json.dumps(cell, sort_keys=True) for cell in cells]
    assert len(set(texts)) == len(texts)
    assert {cell["seed"] for cell in cells} == {0, 1, 2}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_small_cell_computes(name: str) -> None:
    experiment = EXPERIMENTS[name]
    found = experiment.function(**experiment.small(1)[0], device="cpu")
    assert found
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_committed_results_are_whole_and_of_todays_code(name: str) -> None:
    found, experiment = results(name), EXPERIMENTS[name]
    assert found["size"] == "full"
    assert found["seeds"] == experiment.seeds
    cells: list[object] = [run["cell"] for run in found["cells"]]
    assert cells == with_device(experiment)
    assert not found["commit"].endswith("-dirty")


def with_device(experiment: Experiment) -> list[object]:
    return [cell | {"device": "cpu"} for cell in experiment.full(experiment.seeds)]
