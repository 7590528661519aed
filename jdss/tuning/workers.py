"""Workers: Ray actors that train trials, on this machine or on a cluster. They never see the study.

Locally Ray is started and ended by the call. Each worker trains with the devices that it has for
itself, or with as many threads as it has cores, and keeps the examples and the compiled programs
between trials. One that dies is replaced, and its trial is trained again.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import jax

from jdss import parallel
from jdss.config import Search, Workers
from jdss.data.examples import Examples
from jdss.training.trial import Rung
from jdss.tuning.objective import Died, Objective, Order, Outcome, attempt
from jdss.tuning.study import MOST_DEATHS, this_process

_WAIT = 5.0  # seconds for which `next_event` waits
_PATIENCE = 60.0  # seconds without any worker after which a warning says what is missing

_CONFIGURATION = (
    "jax_enable_compilation_cache",
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_enable_x64",
)
"""What a program may have set in JAX, and a worker has to share for the same results."""


class WorkerError(RuntimeError):
    """Workers cannot be started, or die again and again; the message says why."""


class Trainer:
    """What runs in a worker."""

    def load(self, objective: Objective, configuration: Mapping[str, Any]) -> Mapping[str, Any]:
        """Places the examples on the devices; returns this process."""
        for name, value in configuration.items():
            jax.config.update(name, value)
        self._objective = _with_examples(objective, parallel.replicate)
        return this_process()

    def start(self, order: Order) -> Rung | Outcome:
        """Begins a trial, and trains it up to its first rung."""
        self._events = attempt(self._objective, order)
        return next(self._events)

    def answer(self, stop: bool) -> Rung | Outcome:
        """Trains the trial up to its next rung, or to its end; or ends it here."""
        return self._events.send(stop)


def _with_examples(objective: Objective, place: Callable[[Examples], Examples]) -> Objective:
    """The objective with its examples elsewhere; those on the host stay there."""
    training = objective.training
    if not isinstance(training.problem.examples, Examples):
        return objective
    problem = replace(training.problem, examples=place(training.problem.examples))
    return replace(objective, training=replace(training, problem=problem))


@dataclass
class _Slot:
    """A worker, or one that is to be."""

    actor: Any
    pending: Any
    state: str = "loading"  # then "free" or "busy"
    process: Mapping[str, Any] = field(default_factory=dict)


class RayPool:
    """A pool of workers, as the driver has one of its own process."""

    def __init__(self, ray: Any, workers: Workers, objective: Objective) -> None:
        self._ray = ray
        self._resources = _share(ray, workers)
        # Once for all workers, and on no device of this process; they need not know the search.
        on_no_device = _with_examples(objective, jax.device_get)
        self._objective = ray.put(replace(on_no_device, space={}, search=Search()))
        self._deaths_without_trial = 0
        self._waited = 0.0
        self._slots = [self._new_slot() for _ in range(workers.number)]

    def _new_slot(self) -> _Slot:
        """Asks Ray for a worker; it may take a while, or wait for a node."""
        flags = os.environ.get("XLA_FLAGS", "").split()
        variables = {
            "XLA_FLAGS": " ".join(f for f in flags if "host_platform_device_count" not in f),
            "JAX_NUM_CPU_DEVICES": "1",
            "NPROC": str(max(int(self._resources["num_cpus"]), 1)),  # XLA's threads
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # shared with others and with the driver
        }
        if not self._resources["num_gpus"] and "JAX_PLATFORMS" in os.environ:
            variables["JAX_PLATFORMS"] = os.environ["JAX_PLATFORMS"]
        options = {"max_restarts": 0, "max_task_retries": 0, "runtime_env": {"env_vars": variables}}
        actor = self._ray.remote(Trainer).options(**self._resources, **options).remote()
        configuration = {name: getattr(jax.config, name) for name in _CONFIGURATION}
        return _Slot(actor, actor.load.remote(self._objective, configuration))

    def free(self) -> Sequence[int]:
        return [number for number, slot in enumerate(self._slots) if slot.state == "free"]

    def start(self, number: int, order: Order) -> Mapping[str, Any]:
        slot = self._slots[number]
        slot.state, slot.pending = "busy", slot.actor.start.remote(order)
        return slot.process

    def answer(self, number: int, stop: bool) -> None:
        slot = self._slots[number]
        slot.pending = slot.actor.answer.remote(stop)

    def next_event(self) -> tuple[int, Rung | Outcome | Died] | None:
        """What a worker reports; a bug in a user's code is raised, with a note on where it was."""
        pending = {slot.pending: n for n, slot in enumerate(self._slots) if slot.pending}
        ready, _ = self._ray.wait(list(pending), num_returns=1, timeout=_WAIT)
        if not ready:
            self._say_what_is_missing()
            return None
        number = pending[ready[0]]
        slot = self._slots[number]
        slot.pending = None
        try:
            result = self._ray.get(ready[0])
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, BaseException) else error
            cause.add_note(f"in a worker, process {slot.process.get('pid')}:\n{error}")
            raise cause from None
        except self._ray.exceptions.RayError as error:
            return self._replace(number, error)
        if slot.state == "loading":
            slot.state, slot.process, self._waited = "free", result, 0.0
            return None
        if isinstance(result, Outcome):
            slot.state, self._deaths_without_trial = "free", 0
        return number, result

    def _replace(self, number: int, error: Exception) -> tuple[int, Died] | None:
        """Puts another worker into the slot of one that died."""
        slot = self._slots[number]
        self._slots[number] = self._new_slot()
        if slot.state == "busy":
            return number, Died()
        self._deaths_without_trial += 1
        if self._deaths_without_trial > MOST_DEATHS * len(self._slots):
            reason = " ".join(str(error).split())
            raise WorkerError(f"workers die before they have a trial: {reason}") from error
        return None

    def _say_what_is_missing(self) -> None:
        if any(slot.state in ("free", "busy") for slot in self._slots):
            return
        before, self._waited = self._waited, self._waited + _WAIT
        if before < _PATIENCE <= self._waited:
            warnings.warn(
                f"no worker could be started for {_PATIENCE:.0f} s: each takes {self._resources}, "
                f"and Ray has {self._ray.available_resources()} left",
                RuntimeWarning,
                stacklevel=4,
            )

    def close(self) -> None:
        """Ends the workers."""
        for slot in self._slots:
            self._ray.kill(slot.actor)


@contextmanager
def ray_pool(workers: Workers, objective: Objective) -> Iterator[RayPool]:
    """A pool of workers, with Ray started for it where there is none."""
    ray = import_ray()
    begun = not ray.is_initialized()
    if begun:
        with warnings.catch_warnings():  # JAX warns of forks; these become other programs at once
            warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
            _begin_ray(ray, workers)
    try:
        pool = RayPool(ray, workers, objective)
        try:
            yield pool
        finally:
            pool.close()
    finally:
        if begun:  # a cluster is left, and not ended
            ray.shutdown()


def import_ray() -> Any:
    """Ray; or ModuleNotFoundError with what to install."""
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'workers above 1 need the package ray: pip install "jdss-jax[ray]", or in a checkout '
            'pip install -e ".[ray]"'
        ) from error
    return ray


def _begin_ray(ray: Any, workers: Workers) -> None:
    address = workers.address or os.environ.get("RAY_ADDRESS")
    if address and address != "local":
        try:
            ray.init(address, logging_level="ERROR")
        except ConnectionError as error:
            raise WorkerError(f"no Ray cluster answers at {address!r}: {error}") from error
        return
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
        os.environ.setdefault(name, "0")
    has_affinity = hasattr(os, "sched_getaffinity")  # which macOS has not
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    there = {
        "num_cpus": max(cores, workers.number * max(int(workers.cpus or 1), 1)),
        "num_gpus": jax.local_device_count() if jax.default_backend() == "gpu" else 0,
    }
    ray.init("local", **there, include_dashboard=False, logging_level="ERROR")


def _share(ray: Any, workers: Workers) -> dict[str, float]:
    """What each worker takes of CPUs and GPUs: as asked, or an equal share of what there is."""
    there, share = ray.cluster_resources(), {}
    for name, asked in (("CPU", workers.cpus), ("GPU", workers.gpus)):
        equal = there.get(name, 0.0) / workers.number
        # Ray takes whole numbers above one; of a CPU that is shared, each has all its time slices.
        rounded = float(int(equal)) if equal >= 1 else int(equal * 100) / 100
        share[f"num_{name.lower()}s"] = rounded if asked is None else asked
    return share
