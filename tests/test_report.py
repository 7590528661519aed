"""The page of a search: complete, self-contained, safe, and drawn by a real browser."""

import builtins
import re
import shutil
import subprocess
import sys

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

import jdss
from jdss import reports

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
SPACE = {
    "learning_rate": FloatDistribution(0.001, 0.3, log=True),
    "optimizer": CategoricalDistribution(["sgd", "adam"]),
}


@pytest.fixture(scope="module")
def study():
    """A study as a search leaves it: completed, pruned and failed trials."""
    study = optuna.create_study(direction="maximize", study_name="a <b>&amp; study")
    study.set_user_attr(
        "jdss:search",
        {"metric": "accuracy", "direction": "maximize", "strategy": {"name": "grad_match"}},
    )
    study.set_user_attr("jdss:retraining", {"test_accuracy": 0.9912, "test_score": 0.9912})
    for number in range(15):
        state, attributes = TrialState.COMPLETE, {}
        if number in {3, 4}:
            state = TrialState.PRUNED
        if number == 5:
            state, attributes = TrialState.FAIL, {"jdss:failure": "the loss became <NaN>"}
        value = 0.5 + 0.03 * number
        values = {"learning_rate": 0.01 * (number + 1), "optimizer": ("sgd", "adam")[number % 2]}
        study.add_trial(
            create_trial(
                state=state,
                value=None if state == TrialState.FAIL else value,
                params=values,
                distributions=SPACE,
                intermediate_values={1: value - 0.1, 3: value},
                user_attrs={
                    "jdss:ledger": {"seconds": {"compiling": 2.0, "training": 1.0 + number}},
                    "jdss:hyperparameters": values,
                    "jdss:selections": [{"selected": 54, "relative_residual": 0.02}],
                    **attributes,
                },
            )
        )
    return study


def page(study, tmp_path):
    path = tmp_path / "new" / "report.html"
    jdss.report(study._storage, study.study_name, out=path)
    return path.read_text(encoding="utf-8")


def visible(text):
    """The page without programs, style and tags."""
    bare = re.sub(r"<(script|style)\b.*?</\1>", "", text, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", bare))


def test_the_page_holds_every_trial_and_the_sums(study, tmp_path):
    content = visible(page(study, tmp_path))
    assert "12 complete, 2 pruned, 1 failed" in content
    assert "the loss became &lt;NaN&gt;" in content
    training = sum(1.0 + number for number in range(15))
    assert f"training {training:.2f} s" in content
    assert f"all {training + 30:.2f} s" in content
    assert re.search(r"best accuracy 0\.92 trial 14", content)
    assert re.search(r"retrained on everything 99\.12% test accuracy", content)
    assert "learning rate 0.15" in content
    for title in ("History", "Hyper-parameters", "Importance", "At the rungs"):
        assert title in content


def test_the_page_loads_nothing_and_holds_plotly_once(study, tmp_path):
    text = page(study, tmp_path)
    assert len(text) < 8e6
    assert text.count("plotly.js v") == 1
    assert not re.search(r"<(link|img|iframe|object|base)\b", text)
    assert not re.search(r"<script[^>]*\bsrc=", text)
    style = re.search(r"<style>.*?</style>", text, re.DOTALL)[0]
    assert not re.search(r"url\(|@import", style)


def test_names_cannot_become_markup(study, tmp_path):
    text = page(study, tmp_path)
    assert "<title>a &lt;b&gt;&amp;amp; study</title>" in text
    assert "<NaN>" not in text


def test_importances_are_left_out_where_trials_are_few_or_alike(tmp_path):
    for count in (5, 12):
        study = optuna.create_study(study_name=f"{count} trials")
        for _ in range(count):
            space = {"learning_rate": FloatDistribution(0.001, 0.3)}
            study.add_trial(
                create_trial(value=1.0, params={"learning_rate": 0.1}, distributions=space)
            )
        assert "Importance" not in visible(page(study, tmp_path))


def test_a_search_without_trials_or_results_has_a_page(tmp_path):
    study = optuna.create_study(study_name="running")
    assert "no trial was completed" in page(study, tmp_path)
    study.ask({"x": FloatDistribution(0, 1)})
    assert "1 running" in visible(page(study, tmp_path))


def test_the_best_follows_the_direction_and_is_finite(tmp_path):
    study = optuna.create_study(study_name="loss", direction="minimize")
    for value in (3.0, 1.0, float("-inf"), 2.0):
        study.add_trial(create_trial(value=value, intermediate_values={1: float("nan")}))
    assert re.search(r"best value 1 trial 1", visible(page(study, tmp_path)))


def test_errors_are_one_sentence(study, tmp_path):
    with pytest.raises(ValueError, match=r"study_name must be one of the storage's \('a <b>"):
        jdss.report(study._storage, "other")
    storage = optuna.storages.InMemoryStorage()
    with pytest.raises(ValueError, match=r"one of the storage's \(none\), got None"):
        jdss.report(storage)
    optuna.create_study(storage=storage, study_name="two", directions=["minimize", "maximize"])
    with pytest.raises(ValueError, match="one objective, but 'two' has 2"):
        jdss.report(storage, out=tmp_path / "report.html")
    optuna.create_study(storage=storage, study_name="three")
    with pytest.raises(ValueError, match=r"\('three', 'two'\), got None"):
        jdss.report(storage, out=tmp_path / "report.html")
    for name in (f"{tmp_path}/typo.log", f"journal:///{tmp_path}/typo.log", "sqlite:///typo.db"):
        with pytest.raises(ValueError, match="storage must be there already"):
            jdss.report(name, out=tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_with_its_extra(study, monkeypatch):
    real = builtins.__import__

    def without_plotly(name, *arguments, **more):
        if name == "plotly":
            raise ModuleNotFoundError("No module named 'plotly'", name="plotly")
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without_plotly)
    with pytest.raises(
        ModuleNotFoundError,
        match=r'needs plotly, of the extra "report": pip install "jdss-jax\[report\]"',
    ):
        jdss.report(study._storage)


def test_a_report_imports_no_training():
    code = (
        "import jdss, optuna, sys, tempfile; s = optuna.create_study();"
        "jdss.report(s._storage, s.study_name, out=tempfile.mkdtemp() + '/r.html');"
        "print([name for name in sys.modules if name.startswith(('jdss.training', 'jax'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
@pytest.mark.parametrize("width", [1100, 400])
def test_a_real_browser_draws_the_page_and_nothing_sticks_out(study, width, tmp_path):
    text = page(study, tmp_path)
    # A window of a headless browser is at least 500 wide; a frame may be narrower.
    probe = (
        "<script>addEventListener('load', () => setTimeout(() => {"
        "const out = [...document.querySelectorAll('body *')].filter(e => "
        "e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('svg'));"
        "parent.document.title = [innerWidth, document.querySelectorAll('.main-svg').length, "
        "document.querySelectorAll('.point').length, out.length].join(' ')}, 1500))</script>"
    )
    (tmp_path / "report.html").write_text(text.replace("</body>", probe + "</body>"))
    frame = f"<iframe src='report.html' style='width:{width}px;height:2000px;border:0'></iframe>"
    (tmp_path / "frame.html").write_text(f"<body style='margin:0'>{frame}</body>")
    command = [
        BROWSER,
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *(
            "--allow-file-access-from-files",
            "--virtual-time-budget=10000",
            "--disable-web-security",
        ),
        *("--window-size=1300,2100", f"--user-data-dir={tmp_path}/profile", "--dump-dom"),
    ]
    address = (tmp_path / "frame.html").as_uri()
    dump = subprocess.run(
        [*command, address], capture_output=True, text=True, timeout=120, check=True
    )
    inner, drawings, points, sticking_out = re.search(
        r"<title>(\d+) (\d+) (\d+) (\d+)</title>", dump.stdout
    ).groups()
    assert int(inner) == width
    assert int(drawings) >= 5
    assert int(points) >= 11 + 2 * 11 + 2 * 14  # history, two slices, rungs
    assert int(sticking_out) == 0


def test_a_setting_is_written_as_one_would_write_it():
    described = {"name": "FloatDistribution", "attributes": {"low": 0.1, "high": 1.0, "log": True}}
    assert "low=0.1" in reports._text({"rate": {**described}})
