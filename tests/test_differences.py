"""Differences between strategies, paired by search."""

import numpy as np
import pytest
from scipy import stats

from experiments import differences
from jdss.reporting import to_markdown


def result(name, seed, *accuracies):
    return {
        "seeds": {"search": seed},
        "dataset": {"name": "mnist"},
        "scale": {},
        "strategy": {"name": name, "fraction": 0.05},
        "trials": [],
        "ledger": {"seconds": {}},
        "retraining": {"test_accuracy": accuracies[0]},
        "retrainings": [{"test_accuracy": each} for each in accuracies[1:]],
    }


def rows(results):
    lines = to_markdown(differences.table(results)).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    return {label: rest for label, *rest in cells[2:]}


FULL = [result("full", seed, 0.90, 0.92) for seed in (0, 1, 2)]
CRAIG = [
    result("craig", 2, 0.91, 0.91),
    result("craig", 0, 0.89, 0.91),
    result("craig", 1, 0.94, 0.94),
]


def test_means_over_retrainings_are_paired_by_seed():
    found = rows([*CRAIG, *FULL])
    over = np.array([-1.0, 3.0, 0.0])
    test = stats.ttest_1samp(over, 0).confidence_interval()
    mean = f"{over.mean():+.2f} ({test.low:+.2f} to {test.high:+.2f})"
    assert found["CRAIG"] == ["-1.00, +3.00, +0.00", mean, "", "0.00 to 1.41"]
    assert found["full data"] == ["", "", "", "1.41 to 1.41"]


def test_only_searches_of_the_same_seed_are_compared():
    found = rows([*FULL[:1], *CRAIG, result("uniform", 0, 0.80, 0.82), result("uniform", 7, 0.1)])
    assert found["CRAIG"][:3] == ["-1.00", "-1.00", "+9.00"]
    assert found["random"][:3] == ["-10.00", "-10.00", ""]


def test_a_small_loss_is_not_shown_as_a_gain():
    found = rows([*FULL[:1], result("craig", 0, 0.90995, 0.91), result("glister", 0, 0.91)])
    assert found["CRAIG"][0] == "-0.00"
    assert found["GLISTER"][0] == "+0.00"


@pytest.mark.parametrize(
    ("results", "message"),
    [
        (CRAIG, "results must hold full data"),
        ([*FULL, {**FULL[0], "dataset": {"name": "cifar10"}}], "of one study, got CIFAR-10.*MNIST"),
        (
            [*FULL, *CRAIG[:1], {**CRAIG[1], "strategy": {"name": "craig", "fraction": 0.3}}],
            "results must be of one setting of CRAIG",
        ),
        ([*FULL, FULL[0]], "one search of full data with seed 0, got two"),
        ([*FULL, result("craig", 0, 0.9, None)], "retraining of CRAIG with seed 0 has no test"),
    ],
)
def test_what_cannot_be_compared_is_named(results, message):
    with pytest.raises(ValueError, match=message):
        differences.table(results)
