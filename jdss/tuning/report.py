"""A report of a search from its storage: what `jdss report` does on the command line."""

import json
import os
import re
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from jdss._secrets import hide_passwords
from jdss.reporting.html import Search, page
from jdss.tuning.places import was_cut_off
from jdss.tuning.storage import open_storage
from jdss.tuning.study import SEARCH, describe_trial


def report(
    storage: str | optuna.storages.BaseStorage,
    study_name: str | None = None,
    *,
    out: str | os.PathLike[str] = "report.html",
) -> None:
    """Writes one self-contained HTML page of a search: history, importances, ledger and trials.

    The search may be finished or still running, and a study of your own will do as well.

    Args:
      storage: an Optuna storage or its URL.
      study_name: the study's name; None means the only one in the storage.
      out: the file; an earlier one is replaced.

    Raises:
      ValueError: where there is no such study, with the names of those there are; where several
        make `study_name` necessary; where there is no such file; for several objectives.

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
    if isinstance(storage, (str, os.PathLike)):
        _refuse_missing_file(os.fspath(storage))
    opened = open_storage(storage)
    names = sorted(study.study_name for study in optuna.get_all_study_summaries(opened))
    found = names[0] if study_name is None and len(names) == 1 else study_name
    if found not in names:
        known = ", ".join(map(repr, names)) or "none"
        raise ValueError(f"study_name must be one of the storage's ({known}), got {study_name!r}")
    study = optuna.load_study(study_name=found, storage=opened)
    if len(study.directions) > 1:
        raise ValueError(
            f"study_name must be that of a study with one objective, but {found!r} has "
            f"{len(study.directions)}"
        )
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(search_of(study)), encoding="utf-8")


def _refuse_missing_file(storage: str) -> None:
    """Opening a file that is not there, of SQLite or a journal, would make it."""
    path = re.sub("^(sqlite|journal):///", "", storage.partition("?")[0])
    if "://" not in path and not Path(path).exists():
        raise ValueError(f"storage must be there already, but {hide_passwords(storage)} is not")


def search_of(study: optuna.Study) -> Search:
    """What a page says of a study, without the trials that were cut off and run again."""
    search: dict[str, Any] = dict(study.user_attrs.get(SEARCH, {}))
    trials = [
        describe_trial(trial)
        for trial in study.get_trials(deepcopy=False)
        if trial.state != TrialState.WAITING and not (search and was_cut_off(trial))
    ]
    if isinstance(search.get("space"), dict):
        search["space"] = {
            name: _readable(described) for name, described in search["space"].items()
        }
    return Search(
        name=study.study_name,
        metric=search.pop("metric", "value"),
        direction=search.pop("direction", study.direction.name.lower()),
        settings=search,
        trials=trials,
        importances=importances(study),
    )


def _readable(distribution: Any) -> str:
    """A distribution as one would write it."""
    if not isinstance(distribution, dict):
        return str(distribution)
    return str(optuna.distributions.json_to_distribution(json.dumps(distribution)))


def importances(study: optuna.Study) -> dict[str, float] | str:
    """The share of each hyper-parameter in what makes trials good, or why there are none."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < 2:
        return "Importances need at least two completed trials."
    try:
        found = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
        )
    except (ValueError, RuntimeError, ZeroDivisionError) as error:
        return f"Importances could not be computed: {error}"
    return found or "Importances need a hyper-parameter that was varied."
