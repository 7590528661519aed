"""The report: complete, self-contained, safe, and drawn by a real browser."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import optuna
import pytest
from optuna.trial import TrialState

import jdss
from jdss.reporting import charts
from jdss.reporting.html import Search, page
from jdss.tuning.report import search_of

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Checker(HTMLParser):
    """Collects texts and attributes, and checks that every tag is closed in its turn."""

    def __init__(self):
        super().__init__()
        self.open, self.attributes, self.tags, self.texts = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def parsed(text):
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    return checker


@pytest.fixture(scope="module")
def study():
    """A study as a search leaves it: completed, pruned, failed and cut-off trials."""
    study = optuna.create_study(direction="maximize", study_name="a <b>&amp; study")
    study.set_user_attr(
        "jdss:search",
        {"metric": "accuracy", "direction": "maximize", "strategy": {"name": "grad_match"}},
    )
    distribution = optuna.distributions.FloatDistribution(0.001, 0.3)
    for number in range(8):
        state, attributes = TrialState.COMPLETE, {}
        if number in {3, 4}:
            state = TrialState.PRUNED
        if number == 5:
            state, attributes = TrialState.FAIL, {"jdss:failure": "the loss became <NaN>"}
        if number == 6:
            state, attributes = TrialState.FAIL, {"jdss:interrupted": "killed"}
        value = 0.5 + 0.05 * number
        ledger = {"seconds": {"compiling": 2.0, "training": 1.0 + number}, "joules": 5.0}
        study.add_trial(
            optuna.trial.create_trial(
                state=state,
                value=value if state in {TrialState.COMPLETE, TrialState.PRUNED} else None,
                params={"learning_rate": 0.01 * (number + 1)},
                distributions={"learning_rate": distribution},
                intermediate_values={1: value - 0.1, 3: value},
                user_attrs={
                    "jdss:ledger": ledger,
                    "jdss:hyperparameters": {"learning_rate": 0.01 * (number + 1)},
                    "jdss:selections": [{"selected": 54, "relative_residual": 0.02}],
                    **attributes,
                },
            )
        )
    return study


def test_the_page_holds_every_trial_that_counts_and_the_sums(study):
    text = page(search_of(study))
    content = " ".join(parsed(text).texts)
    assert "4 complete, 2 pruned, 1 failed" in content
    assert "killed" not in content  # cut off: its retry is what counts
    assert "the loss became <NaN>" in content
    seconds = sum(1.0 + number for number in (0, 1, 2, 3, 4, 5, 7))
    assert f"{seconds:.2f}" in content
    assert f"{seconds + 14:.2f}" in content
    assert "0.85" in content  # trial 7 is the best
    assert "learning_rate" in content


def test_the_page_loads_nothing_and_runs_nothing(study):
    text = page(search_of(study))
    checker = parsed(text)
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(checker.tags)
    names = {name for name, _ in checker.attributes}
    assert not {"src", "href", "srcset", "data", "action"} & names
    assert not [name for name in names if name.startswith("on")]
    assert not re.search(r"https?://|url\(|@import", text)


def test_names_cannot_become_markup(study):
    checker = parsed(page(search_of(study)))
    assert "a <b>&amp; study" in checker.texts
    assert "b" not in checker.tags[:6]


def test_a_search_without_trials_or_results_has_a_page():
    empty = page(Search("none", "accuracy", "maximize", {}, [], "none yet"))
    assert "No trial was completed" in empty
    parsed(empty)
    study = optuna.create_study(study_name="running")
    study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
    parsed(page(search_of(study)))


def test_the_best_so_far_follows_the_direction():
    def chart(direction, values):
        trials = [
            {
                "number": number,
                "state": "complete",
                "value": value,
                "hyperparameters": {},
                "failure": None,
                "ledger": None,
            }
            for number, value in enumerate(values)
        ]
        text = page(Search("s", "loss", direction, {}, trials, ""))
        (path,) = re.findall(r'class="best" d="([^"]+)"', text)
        return path.count("V"), text

    assert chart("minimize", [3.0, 1.0, 2.0])[0] == 1
    assert chart("maximize", [3.0, 1.0, 2.0])[0] == 0
    assert "<b>1</b>" in chart("minimize", [3.0, 1.0, 2.0])[1]


@pytest.mark.parametrize(("low", "high"), [(0.97, 0.981), (-3.0, 8000.0), (1e-9, 2e-9)])
def test_ticks_are_few_round_and_inside(low, high):
    found = charts.ticks(low, high)
    assert 2 <= len(found) <= 8
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in found)


def test_report_refuses_an_unknown_study(study):
    with pytest.raises(ValueError, match="study_name must be one of the storage's"):
        jdss.report(study._storage, "other")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
def test_a_real_browser_draws_the_page(study, tmp_path):
    from PIL import Image

    (tmp_path / "report.html").write_text(page(search_of(study)))
    command = [
        BROWSER,
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--hide-scrollbars", "--window-size=1000,1400", f"--user-data-dir={tmp_path}/profile"),
    ]
    address = (tmp_path / "report.html").as_uri()
    dump = subprocess.run(
        [*command, "--dump-dom", address], capture_output=True, text=True, timeout=120, check=True
    )
    assert dump.stdout.count("<circle") == 6 + 14  # history; two rungs of seven trials
    assert dump.stdout.count("<svg") == 4
    assert "<h2>At the rungs</h2>" in dump.stdout

    picture = tmp_path / "report.png"
    subprocess.run([*command, f"--screenshot={picture}", address], timeout=120, check=True)
    with Image.open(picture) as image:
        colors = image.convert("RGB").getcolors(maxcolors=1 << 24)
    counts = {color: count for count, color in colors}
    assert len(counts) > 100  # text and marks, with their soft edges
    blue = sum(count for (r, g, b), count in counts.items() if b > r + 60 and b > g + 30)
    assert blue > 2000  # bars and dots
    assert max(counts.values()) < 1000 * 1400 * 0.98  # not blank


def test_infinite_values_have_a_page(study):
    study = optuna.create_study(study_name="infinite")
    for value in (1.0, float("inf"), 2.0):
        trial = optuna.trial.create_trial(value=value, intermediate_values={1: float("nan")})
        study.add_trial(trial)
    text = page(search_of(study))
    parsed(text)
    assert "Not drawn: 1 trials with an infinite value" in text
    assert "nan" not in text.lower().split("</head>")[1]


def test_report_refuses_several_objectives_and_does_not_make_a_journal(tmp_path):
    storage = optuna.storages.InMemoryStorage()
    optuna.create_study(storage=storage, study_name="two", directions=["minimize", "maximize"])
    with pytest.raises(ValueError, match="one objective, but 'two' has 2"):
        jdss.report(storage, out=tmp_path / "report.html")
    for name in (f"{tmp_path}/typo.log", f"journal:///{tmp_path}/typo.log"):
        with pytest.raises(ValueError, match="storage must be there already"):
            jdss.report(name, out=tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []
