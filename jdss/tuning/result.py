"""What a search found, and what it cost."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from jdss.ledger import Ledger
from jdss.training.hyperparameters import DEFAULTS
from jdss.tuning.retraining import Retraining
from jdss.tuning.space import stored_value
from jdss.tuning.study import estimate


@dataclass(frozen=True, repr=False)
class TuneResult:
    """What a search found, and what it cost.

    Attributes:
      best_hyperparameters: of the completed trial with the best score.
      best_value: that score: the validation accuracy as a fraction, or what `metric` measures.
      trials: every finished trial: number, state, value, hyperparameters, failure, ledger, the
        scores at its rungs, and the statistics of its selections.
      retraining: the retrained model; None where it was not asked for, or diverged.
      failure: what went wrong after the search, in retraining or saving; None if nothing did.
      ledger: where all the seconds went: importing, loading, the trials' lines, and retraining.
      study: the Optuna study.
      search: what was searched, and how, as result files say it.

    Made by `jdss.tune`.
    """

    best_hyperparameters: dict[str, Any]
    best_value: float
    trials: list[dict[str, Any]]
    retraining: Retraining | None
    failure: str | None
    ledger: Ledger
    study: optuna.Study
    search: dict[str, Any]

    def summary(self) -> str:
        """What the command prints: the best hyper-parameters, their scores, and the seconds."""
        metric, retraining = self.search["metric"], self.retraining
        states = [trial["state"] for trial in self.trials]
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        scores: dict[str, Any] = {f"validation {metric}": self.best_value}
        if retraining is not None and retraining.test_accuracy is not None:
            scores["test accuracy after retraining"] = retraining.test_accuracy
        elif retraining is not None and retraining.test_score is not None:
            scores[f"test {metric} after retraining"] = retraining.test_score
        seconds = self.ledger.seconds.items()
        times = {f"{line} (s)": f"{spent:.1f}" for line, spent in seconds if spent >= 0.05}
        if (everything := self.seconds_on_everything()) is not None:
            search = self.ledger.total_seconds - self.ledger.seconds["retraining"]
            longer = f"{everything / search:.1f} times as long as this search"
            said = longer if everything > search else "less than this search: subsets did not pay"
            times["full data, estimated (s)"] = f"{everything:.0f}, {said}"
        best = self.best_hyperparameters
        fixed = {k: v for k, v in DEFAULTS.items() if v and k not in best}
        if "optimizer" in fixed and "sgd" not in self.search["optimizers"]:
            fixed["optimizer"] = self.search["optimizers"][0]
        not_searched = {"not searched": ", ".join(f"{k} {v}" for k, v in fixed.items())}
        lines = [f"{len(states)} trials: {counts}"]
        for part in (best | (not_searched if fixed else {}), scores, times):
            lines.append("")
            for name, value in part.items():
                shown = f"{value:.4g}" if isinstance(value, float) else value
                lines.append(f"{name:<30}  {shown}")
        return "\n".join(lines)

    __str__ = summary

    def __repr__(self) -> str:
        return f"<TuneResult of {len(self.trials)} trials, best value {self.best_value:.4g}>"

    def seconds_on_everything(self) -> float | None:
        """What all trials would have taken on all the data, unpruned and without compiling.

        An estimate: by what an epoch of retraining took, or else by the trials' own steps. None for
        a search on all the data, or without a trial that says what it took.
        """
        strategy = self.search["strategy"]
        known = [trial for trial in self.trials if trial["ledger"] and trial["share"]]
        if strategy["name"] == "full" or not known:
            return None
        if self.retraining is not None:
            spent = self.retraining.ledger.seconds["training"]
            lengths = [trial["hyperparameters"].get("epochs") for trial in self.trials]
            own = self.best_hyperparameters.get("epochs")
            if spent and own and None not in lengths:
                return float(spent / own * sum(lengths))
        mean = np.mean([estimate(trial, strategy["fraction"])[1] for trial in known])
        return float(mean) * len(self.trials)

    def predict(self, raw: Any, *, batch_size: int = 512) -> np.ndarray:
        """What the labels of inputs are, by the retrained model (see `TrainedModel.predict`).

        Raises:
          ValueError: where nothing was retrained, or not by this call and not saved.
        """
        return self._retrained().predict(raw, batch_size=batch_size)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Saves the retrained model for `jdss.load` (see `TrainedModel.save`)."""
        return self._retrained().save(path)

    def _retrained(self) -> Retraining:
        if self.retraining is None:
            raise ValueError("the winner was not retrained: tune(…, retrain=True) does it")
        return self.retraining

    def as_dict(self) -> dict[str, Any]:
        """What result files hold of it: trials, retraining and the ledger, in JSON's types."""
        best = {name: stored_value(value) for name, value in self.best_hyperparameters.items()}
        found, seconds = self.retraining, self.ledger.seconds
        again = Ledger() if found is None else found.ledger
        before = seconds["importing"] + seconds["loading"]
        retraining = found and {
            "hyperparameters": best,
            "test_accuracy": found.test_accuracy,
            "test_score": found.test_score,
            "ledger": found.ledger.as_dict(),
        }
        return {
            "strategy": self.search["strategy"],
            "search": {name: self.search[name] for name in self.search if name != "strategy"},
            "best": {"hyperparameters": best, "value": self.best_value},
            "trials": self.trials,
            "retraining": retraining,
            "ledger": {
                **self.ledger.as_dict(),
                "total_seconds": self.ledger.total_seconds,
                # With what is found once for all trials.
                "search_seconds": self.ledger.total_seconds - before - again.total_seconds,
                "search_compiling_seconds": seconds["compiling"] - again.seconds["compiling"],
                "retraining_seconds": found and found.ledger.total_seconds,
                "retraining_compiling_seconds": found and found.ledger.seconds["compiling"],
            },
        }
