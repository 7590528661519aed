"""Training on CORDS's subsets beside ours: the table, and CORDS's side where it is installed."""

import numpy as np
import pytest

import jdss
from experiments import cords_quality, trainings
from jdss.ledger import Ledger


def result(side, way, seed, test_accuracy):
    ledger = Ledger()
    ledger.seconds |= {"solving": 2.0, "training": 3.0, "compiling": 9.0}
    return {
        "library": side,
        "strategy": {"way": way, "name": way, "fraction": 0.05},
        "scale": {"name": "test", "description": "few images"},
        "trials": [
            {
                "seed": seed,
                "test_accuracy": test_accuracy,
                "hyperparameters": {},
                "ledger": ledger.as_dict(),
            }
        ],
    }


def test_differences_are_ours_less_theirs_paired_by_seed():
    results = [
        result("cords", "craig", 0, 0.90),
        result("cords", "craig", 1, 0.92),
        result("jdss", "craig", 1, 0.95),
    ]
    (row,) = cords_quality.table(results).frame.to_dict("records")
    assert row["CORDS's"] == "CRAIG per class"
    assert row["CORDS"] == "91.00 ± 1.41% (2)"
    assert row["ours"] == "95.00% (1)"
    assert row["ours less CORDS (points)"] == "+3.00"
    assert row["CORDS in our loop"] == "–"
    assert row["seconds: CORDS"] == "5.0"
    assert row["ours selecting (s)"] == "2.0"


@pytest.mark.parametrize("our_loop", [False, True])
@pytest.mark.parametrize("name", ["uniform", "grad_match-own", "glister-training"])
def test_cords_side_trains(name, our_loop):
    pytest.importorskip("cords")
    pytest.importorskip("torch")
    images = np.random.default_rng(0).integers(0, 256, (600, 28, 28, 1), dtype=np.uint8)
    labels = np.arange(600, dtype=np.int32) % 10
    dataset = jdss.Dataset("random", images[:500], labels[:500], images[500:], labels[500:], 10)
    problem, test = trainings.split(dataset)
    form = cords_quality.FORMS[name]
    values = {**cords_quality.HYPERPARAMETERS, "epochs": 4}
    trial = cords_quality.train_cords(problem, test, form, values, seed=0, our_loop=our_loop)
    # Two epochs' worth of k = 22 on all the data are a step, and so is each epoch on a subset.
    assert trial["steps"] == 1 + 2
    (selection,) = trial["selections"]
    assert 22 <= selection["num_selected"] <= 30  # class by class, CORDS rounds up
    assert 0 <= trial["test_accuracy"] <= 1
