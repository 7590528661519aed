"""Checkpoints inside a trial: a long training that is cut off goes on where it was.

One file for each trial, in Flax's format as saved models are, replaced as a whole, so that there is
always a complete one. It holds what training needs to give the very result that it would have
given: the state, the subset, and what is to be told of the way there.
"""

import json
import os
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import serialization

from jdss.ledger import Ledger
from jdss.subset import Subset
from jdss.training.checkpoint import write_whole
from jdss.training.state import TrainState


@dataclass
class TrialCheckpoint:
    """Where, for whom and how often.

    Attributes:
      path: of the file; its directory is made when it is needed.
      identity: what the trial computes, in JSON's types. A file of another trial is not used.
      every: seconds between two checkpoints; they are made at the end of a stretch of training.
      past: seconds that earlier attempts spent up to the checkpoint.
    """

    path: Path
    identity: Any
    every: float = 60.0
    past: Ledger = field(default_factory=Ledger)
    _last: float = field(default_factory=time.monotonic)
    _broken: bool = False

    def load(
        self, state: TrainState, history: list[Any], selections: list[Any]
    ) -> tuple[TrainState, Subset | None]:
        """What was saved, if anything: state (like a new one) and subset; fills the two lists."""
        if not self.path.exists():
            return state, None
        leaves, structure = jax.tree.flatten(state)
        try:
            saved = serialization.msgpack_restore(self.path.read_bytes())
            about = json.loads(saved["about"])
            if about["identity"] != json.loads(json.dumps(self.identity)):
                return state, None
            found, parts = ([*saved[name].values()] for name in ("state", "subset"))
            kinds = [[(leaf.shape, leaf.dtype) for leaf in each] for each in (found, leaves)]
            if kinds[0] != kinds[1]:
                raise ValueError("the model has other shapes")
            subset = Subset(*map(jnp.asarray, parts)) if parts else None
        except Exception as error:  # whatever a damaged file brings about
            self._warn("read", error, "its trial starts again")
            return state, None
        history.extend(about["history"])
        selections.extend(about["selections"])
        self.past.add(about["ledger"])
        return jax.tree.unflatten(structure, map(jnp.asarray, found)), subset

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
            about = {"identity": self.identity, "history": history, "selections": selections}
            about["ledger"] = spent.as_dict()
            content: dict[str, Any] = {"about": json.dumps(about)}
            content |= {"state": jax.tree.leaves(state), "subset": jax.tree.leaves(subset)}
            try:
                self._write(serialization.to_bytes(jax.device_get(content)))
            except OSError as error:
                self._broken = True
                self._warn("written", error, "the trial goes on without")
        self._last = time.monotonic()

    def _write(self, content: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(f".{os.getpid()}.part")
        try:
            write_whole(part, content)
            os.replace(part, self.path)
        finally:
            part.unlink(missing_ok=True)

    def _warn(self, done: str, error: Exception, then: str) -> None:
        sentence = f"the checkpoint {self.path} cannot be {done} ({error}): {then}"
        warnings.warn(sentence, RuntimeWarning, stacklevel=4)


def stretches_in(path: Path) -> int:
    """How many stretches of training a checkpoint has behind it; 0 where none can be read."""
    try:
        saved = serialization.msgpack_restore(path.read_bytes())
        return len(json.loads(saved["about"])["history"])
    except Exception:  # whatever a damaged file brings about
        return 0


def remove_checkpoint(path: Path) -> None:
    """Removes the file of a trial that is finished."""
    with suppress(OSError):  # nobody needs it, and the result is safe
        path.unlink(missing_ok=True)
