"""The page of a search: a template around Optuna's own plots, the ledger and the trials.

(Not `report.py`: a module of that name would take the place of the function `jdss.report`.)
"""

import json
import math
import os
import platform
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from jdss._texts import hide_passwords
from jdss.tuning.storage import open_storage
from jdss.tuning.study import RETRAINING, SEARCH, describe_trial

_MANY_SCORES = 10  # of completed trials, for importances to mean something


def report(
    storage: str | os.PathLike[str] | optuna.storages.BaseStorage,
    study_name: str | None = None,
    *,
    out: str | os.PathLike[str] = "report.html",
) -> None:
    """Writes one self-contained HTML page of a search: Optuna's plots, the ledger and all trials.

    The search may be finished or still running, and a study of your own will do as well. Needs
    plotly and Jinja2: `pip install "jdss-jax[report]"`.

    Args:
      storage: an Optuna storage or its URL.
      study_name: the study's name; None means the only one in the storage.
      out: the file; an earlier one is replaced.

    Raises:
      ValueError: where there is no such file, or no such study, with the names of those there are;
        where several make `study_name` necessary; for several objectives.
      ModuleNotFoundError: without plotly or Jinja2.

    Example:
      >>> import optuna, tempfile
      >>> storage = optuna.storages.InMemoryStorage()
      >>> study = optuna.create_study(storage=storage, study_name="mine")
      >>> study.add_trial(optuna.trial.create_trial(value=0.5))
      >>> path = Path(tempfile.mkdtemp()) / "report.html"
      >>> report(storage, "mine", out=path)
      >>> "<title>mine</title>" in path.read_text()
      True
    """
    try:
        import jinja2
        import plotly  # noqa: F401
    except ImportError as error:
        needed = (
            f'a report needs {error.name}, of the extra "report": pip install "jdss-jax[report]"'
        )
        raise ModuleNotFoundError(needed, name=error.name) from None
    study = _open_study(storage, study_name)
    loader, strict = jinja2.PackageLoader("jdss"), jinja2.StrictUndefined
    templates = jinja2.Environment(loader=loader, autoescape=True, undefined=strict)
    templates.filters["text"] = _text
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(templates.get_template("report.html").render(_content(study)), encoding="utf-8")


def _open_study(storage: Any, study_name: str | None) -> optuna.Study:
    if isinstance(storage, (str, os.PathLike)):
        # Opening a file that is not there, of SQLite or a journal, would make it.
        url = os.fspath(storage)
        path = re.sub("^(sqlite|journal):///", "", url.partition("?")[0])
        if "://" not in path and not Path(path).exists():
            raise ValueError(f"storage must be there already, but {hide_passwords(url)} is not")
    opened = open_storage(storage)
    names = sorted(optuna.get_all_study_names(opened))
    found = names[0] if study_name is None and len(names) == 1 else study_name
    if found is None or found not in names:
        known = ", ".join(map(repr, names)) or "none"
        raise ValueError(f"study_name must be one of the storage's ({known}), got {study_name!r}")
    study = optuna.Study(found, opened)
    if (number := len(study.directions)) > 1:
        raise ValueError(f"study_name must be one with one objective, but {found!r} has {number}")
    return study


def _content(study: optuna.Study) -> dict[str, Any]:
    """What the template shows."""
    search = dict(study.user_attrs.get(SEARCH, {}))
    metric = str(search.pop("metric", "value"))
    trials = [describe_trial(trial) for trial in study.get_trials(deepcopy=False)]
    complete = [
        trial for trial in trials if trial["state"] == "complete" and math.isfinite(trial["value"])
    ]
    best = max if study.direction == optuna.study.StudyDirection.MAXIMIZE else min
    spent = Counter[str]()
    for trial in trials:
        spent.update(trial["ledger"]["seconds"] if trial["ledger"] else {})
    figures: dict[str, list[str]] = {}
    for title, figure in _figures(study, metric, {trial["value"] for trial in complete}):
        html = _drawn(figure, with_plotly=not figures)
        figures.setdefault(title, []).append(html)
    return {
        "name": study.study_name,
        "metric": metric,
        "states": Counter(trial["state"] for trial in trials),
        "best": best(complete, key=lambda trial: trial["value"], default=None),
        "retraining": study.user_attrs.get(RETRAINING),
        "figures": figures,
        "ledger": {line: seconds for line, seconds in spent.items() if seconds > 0},
        "spent": timedelta(seconds=round(spent.total())),
        "trials": trials,
        "names": list(dict.fromkeys(name for t in trials for name in t["hyperparameters"])),
        "search": search,
        "made": f"{datetime.now():%Y-%m-%d %H:%M} on {platform.platform()}",
    }


def _figures(study: optuna.Study, metric: str, scores: set[float]) -> Iterator[tuple[str, Any]]:
    """(title, figure) of what Optuna can draw of the study."""
    from optuna import visualization
    from optuna.importance import PedAnovaImportanceEvaluator

    trials = study.get_trials(deepcopy=False)
    if any(trial.value is not None for trial in trials):
        yield "History", visualization.plot_optimization_history(study)
    complete = (trial for trial in trials if trial.state == TrialState.COMPLETE)
    names = sorted({name for trial in complete for name in trial.params})
    for name in names:
        yield "Hyper-parameters", visualization.plot_slice(study, [name], target_name=metric)
    if names and len(scores) >= _MANY_SCORES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            evaluator = PedAnovaImportanceEvaluator()
        with suppress(ValueError, RuntimeError, ZeroDivisionError):  # all trials are alike
            figure = visualization.plot_param_importances(study, evaluator=evaluator)
            yield "Importance of the hyper-parameters (PED-ANOVA)", figure
    if any(trial.intermediate_values for trial in trials):
        rungs = visualization.plot_intermediate_values(study)
        pruner = study.user_attrs.get(SEARCH, {}).get("pruner")
        unit = "rung" if pruner is None else pruner.get("rung_unit", "epochs")
        yield "At the rungs", rungs.update_layout(xaxis_title=unit, yaxis_title=metric)


def _drawn(figure: Any, with_plotly: bool) -> str:
    """A figure as HTML, as wide as the page allows, to be read on white and on black."""
    clear, margin = "rgba(0,0,0,0)", {"l": 64, "r": 12, "t": 12, "b": 48}
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom"}
    figure.update_layout(template="none", title=None, font={"color": "#7b8794"}, legend=legend)
    figure.update_layout(autosize=True, width=None, height=300, margin=margin)
    figure.update_layout(paper_bgcolor=clear, plot_bgcolor=clear)
    lines = {"automargin": True, "gridcolor": "rgba(123,135,148,.25)", "zeroline": False}
    figure.update_xaxes(**lines).update_yaxes(**lines)
    figure.update_traces(marker_showscale=False, selector={"type": "scatter"})
    config = {"responsive": True, "displayModeBar": False}
    return str(figure.to_html(full_html=False, include_plotlyjs=with_plotly, config=config))


def _text(value: Any) -> str:
    """A setting as one would write it; distributions among them."""
    if isinstance(value, Mapping) and set(value) == {"name", "attributes"}:
        return str(optuna.distributions.json_to_distribution(json.dumps(value)))
    if isinstance(value, Mapping):
        known = {name: part for name, part in value.items() if part not in (None, {}, [], "")}
        return "; ".join(f"{name}: {_text(part)}" for name, part in known.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
