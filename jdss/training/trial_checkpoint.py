"""Checkpoints inside a trial: a long training that is cut off goes on where it was.

One file for each trial, replaced as a whole, so that there is always a complete one. It holds
what training needs to give the very result that it would have given: the state, the subset, and
what is to be told of the way there.
"""

import json
import os
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdss.ledger import Ledger
from jdss.subset import Subset
from jdss.training.state import TrainState


@dataclass
class TrialCheckpoint:
    """Where, for whom and how often.

    Attributes:
      path: of the file; its directory is made when it is needed.
      identity: what the trial computes, in JSON's types. A file of another trial is not used.
      every: seconds between two checkpoints; they are made at the end of a stretch of training.
      tell: called on loading with the epoch and the score of each rung that was passed.
      past: seconds that earlier attempts spent up to the checkpoint.
      reports: epoch and score at each rung that was passed.
    """

    path: Path
    identity: Any
    every: float = 60.0
    tell: Callable[[int, float], None] = lambda epoch, score: None
    past: Ledger = field(default_factory=Ledger)
    reports: list[tuple[int, float]] = field(default_factory=list)
    _last: float = field(default_factory=time.monotonic)
    _broken: bool = False

    def load(
        self, state: TrainState, history: list[Any], selections: list[Any]
    ) -> tuple[TrainState, Subset | None]:
        """What was saved, if anything: the state and the subset; fills the two lists.

        Args:
          state: a new one, which says what the saved one must look like.
        """
        if not self.path.exists():
            return state, None
        try:
            with np.load(self.path, allow_pickle=False) as file:
                about = json.loads(str(file["about"]))
                if about["identity"] != json.loads(json.dumps(self.identity)):
                    return state, None
                leaves, structure = jax.tree.flatten(state)
                saved = [_like(file[f"state_{number}"], leaf) for number, leaf in enumerate(leaves)]
                subset = None
                if "indices" in file:
                    subset = Subset(
                        *(jnp.asarray(file[name]) for name in ("indices", "weights", "selected"))
                    )
        except Exception as error:  # whatever a damaged file brings about
            warnings.warn(
                f"the checkpoint {self.path} cannot be read ({error}): its trial starts again",
                RuntimeWarning,
                stacklevel=2,
            )
            return state, None
        history.extend(about["history"])
        selections.extend(about["selections"])
        for epoch, score in about["reports"]:
            self.reports.append((epoch, score))
            self.tell(epoch, score)
        self.past.add(about["ledger"])
        return jax.tree.unflatten(structure, saved), subset

    def save_if_due(
        self,
        state: TrainState,
        subset: Subset | None,
        history: list[Any],
        selections: list[Any],
        ledger: Ledger,
    ) -> None:
        """Saves, if `every` seconds are over; a disk that takes no more ends it with a warning."""
        if self._broken or time.monotonic() - self._last < self.every:
            return
        with ledger.measure("other"):
            spent = Ledger()
            spent.add(self.past)
            spent.add(ledger)
            about = {
                "identity": self.identity,
                "history": history,
                "selections": selections,
                "reports": self.reports,
                "ledger": spent.as_dict(),
            }
            leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
            arrays = {f"state_{number}": leaf for number, leaf in enumerate(leaves)}
            if subset is not None:
                names = ("indices", "weights", "selected")
                values = (subset.indices, subset.weights, subset.num_selected)
                arrays |= {n: np.asarray(v) for n, v in zip(names, values, strict=True)}
            try:
                self._write({"about": np.array(json.dumps(about)), **arrays})
            except OSError as error:
                self._broken = True
                warnings.warn(
                    f"the checkpoint {self.path} cannot be written ({error}): the trial goes on "
                    "without",
                    RuntimeWarning,
                    stacklevel=2,
                )
        self._last = time.monotonic()

    def _write(self, arrays: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(f".{os.getpid()}.part")
        try:
            with open(part, "wb") as file:
                np.savez(file, **arrays)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, self.path)
        finally:
            part.unlink(missing_ok=True)

    def remove(self) -> None:
        """Removes the file of a trial that is finished."""
        with suppress(OSError):  # nobody needs it, and the result is safe
            self.path.unlink(missing_ok=True)


def _like(array: np.ndarray, leaf: jax.Array) -> jax.Array:
    """The array, with the type that NumPy's files do not know (bfloat16 and its kin)."""
    if array.dtype != leaf.dtype:
        array = array.view(leaf.dtype)
    if array.shape != leaf.shape:
        raise ValueError(f"the model has other shapes: {array.shape} instead of {leaf.shape}")
    return jnp.asarray(array)
