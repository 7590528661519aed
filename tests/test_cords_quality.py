"""Training on CORDS's subsets beside ours: the table, and CORDS's side where it is installed."""

import numpy as np
import pytest

import jdss
from experiments import cords_quality, trainings
from jdss import reporting
from jdss.reporting.ledger import Ledger


def result(side, way, seed, test_accuracy):
    ledger = Ledger()
    ledger.seconds |= {"solving": 2.0, "training": 3.0, "compiling": 9.0}
    return {
        "library": side,
        "strategy": {"way": way},
        "scale": {"name": "test", "description": "few images"},
        "trials": [{"seed": seed, "test_accuracy": test_accuracy, "ledger": ledger.as_dict()}],
    }


def test_differences_are_ours_less_theirs_paired_by_seed():
    results = [
        result("cords", "craig", 0, 0.90),
        result("cords", "craig", 1, 0.92),
        result("jdss", "craig", 1, 0.95),
    ]
    text = reporting.to_text(cords_quality.table(results))
    row = next(line for line in text.splitlines() if "CRAIG per class" in line)
    cells = [cell.strip() for cell in row.split("  ") if cell.strip()]
    assert cells[2:] == ["2 / 1", "91.00% ± 1.41", "95.00%", "+3.00", "5.0", "5.0", "2.0", "2.0"]


@pytest.mark.parametrize("name", ["uniform", "grad_match-own", "glister-training"])
def test_cords_side_trains(name):
    pytest.importorskip("cords")
    pytest.importorskip("torch")
    images = np.random.default_rng(0).integers(0, 256, (600, 28, 28, 1), dtype=np.uint8)
    labels = np.arange(600, dtype=np.int32) % 10
    dataset = jdss.Dataset("random", images[:500], labels[:500], images[500:], labels[500:], 10)
    problem, test = trainings.split(dataset)
    trial = cords_quality.train_cords(problem, test, cords_quality.FORMS[name], 4, seed=0)
    # Two epochs' worth of k = 22 on all the data are a step, and so is each epoch on a subset.
    assert trial["steps"] == 1 + 2
    (selection,) = trial["selections"]
    assert 22 <= selection["num_selected"] <= 30  # class by class, CORDS rounds up
    assert 0 <= trial["test_accuracy"] <= 1
