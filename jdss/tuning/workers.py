"""Workers: Ray actors that train trials, on this machine or on a cluster. They never see the study.

Locally Ray is started and ended by the call. Each worker trains with the devices, or the cores,
that it has for itself, and keeps the examples and the compiled programs between trials. One that
dies is replaced, and its trial is trained again.
"""

import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jdss.config import Workers
from jdss.training.trial import Rung
from jdss.tuning.attempt import Order, Outcome
from jdss.tuning.driver import Died
from jdss.tuning.study import MOST_DEATHS, died, this_process

_WAIT = 5.0  # seconds for which `next_event` waits
_PATIENCE = 60.0  # seconds without any worker after which a warning says what is missing

_CONFIGURATION = (
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


@dataclass(frozen=True)
class Job:
    """What all trials of a search share, as it is sent to workers: no device holds any of it.

    Attributes:
      problem: the examples as NumPy arrays, and their split.
      model, selection, fraction, task, seed: of the search.
      configuration: JAX's.
    """

    problem: Any
    model: Any
    selection: Any
    fraction: float
    task: Any
    seed: int
    configuration: Mapping[str, Any]


def make_job(
    problem: Any, model: Any, selection: Any, fraction: float, task: Any, seed: int
) -> Job:
    """A `Job` of a problem that is on this process's devices, or on the host."""
    import jax

    from jdss.data.examples import Examples

    if isinstance(problem.examples, Examples):
        problem = _with_examples(problem, jax.device_get(problem.examples))
    configuration = {name: getattr(jax.config, name) for name in _CONFIGURATION}
    return Job(problem, model, selection, fraction, task, seed, configuration)


def _with_examples(problem: Any, examples: Any) -> Any:
    from dataclasses import replace

    return replace(problem, examples=examples)


class Trainer:
    """What runs in a worker."""

    def where(self) -> tuple[str, list[int]]:
        """The node, and its cores."""
        import ray

        return ray.get_runtime_context().get_node_id(), sorted(_cores())

    def load(self, job: Job, cores: Sequence[int]) -> Mapping[str, Any]:
        """Places the examples on the devices; returns this process."""
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, cores)  # by which XLA decides on its number of threads
        import jax

        from jdss import parallel
        from jdss.data.examples import Examples
        from jdss.training.fit import training_on
        from jdss.training.schedule import make_schedule

        for name, value in job.configuration.items():
            jax.config.update(name, value)
        problem = job.problem
        if isinstance(problem.examples, Examples):
            problem = _with_examples(problem, parallel.replicate(problem.examples))
        schedule = make_schedule(job.selection, job.fraction, num_classes=problem.num_classes)
        self._training = training_on(problem, schedule, job.task)
        self._job = job
        return this_process()

    def start(self, order: Order) -> Rung | Outcome:
        """Begins a trial, and trains it up to its first rung."""
        from jdss.tuning.attempt import Attempt

        self._attempt = Attempt(self._training, self._job.model, self._job.seed, order)
        return self._attempt.advance()

    def advance(self) -> Rung | Outcome:
        """Trains the trial up to the next rung, or to its end."""
        return self._attempt.advance()

    def stop(self) -> Outcome:
        """Ends the trial at its rung."""
        return self._attempt.stop()


class RayPool:
    """A pool of workers."""

    def __init__(self, workers: Workers, job: Job) -> None:
        self._ray = _import_ray()
        self._resources = _share(self._ray, workers)
        self._job = self._ray.put(job)
        self._cores: Counter[tuple[str, int]] = Counter()  # workers on each core of each node
        self._slots = [_Slot() for _ in range(workers.number)]
        self._deaths: Counter[int] = Counter()  # by the trial's place
        self._deaths_without_trial = 0
        self._waited = 0.0
        for slot in self._slots:
            self._begin(slot)

    def _begin(self, slot: "_Slot") -> None:
        """Asks Ray for a worker in a slot; it may take a while, or wait for a node."""
        flags = os.environ.get("XLA_FLAGS", "").split()
        variables = {
            "XLA_FLAGS": " ".join(f for f in flags if "host_platform_device_count" not in f),
            "JAX_NUM_CPU_DEVICES": "1",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # shared with others and with the driver
        }
        if not self._resources["num_gpus"] and "JAX_PLATFORMS" in os.environ:
            variables["JAX_PLATFORMS"] = os.environ["JAX_PLATFORMS"]
        actor = self._ray.remote(Trainer)
        options = {**self._resources, "max_restarts": 0, "max_task_retries": 0}
        slot.actor = actor.options(**options, runtime_env={"env_vars": variables}).remote()
        slot.state, slot.order, slot.cores = "starting", None, []
        slot.pending = slot.actor.where.remote()

    def free(self) -> Sequence[int]:
        return [number for number, slot in enumerate(self._slots) if slot.state == "free"]

    def start(self, number: int, order: Order) -> Mapping[str, Any]:
        slot = self._slots[number]
        slot.state, slot.order = "busy", order
        slot.pending = slot.actor.start.remote(order)
        return slot.process

    def advance(self, number: int) -> None:
        slot = self._slots[number]
        slot.pending = slot.actor.advance.remote()

    def stop(self, number: int) -> None:
        slot = self._slots[number]
        slot.pending = slot.actor.stop.remote()

    def next_event(self) -> tuple[int, Rung | Outcome | Died] | None:
        """What a worker reports.

        Raises:
          Exception: a bug in the user's code, with a note on where it was.
          WorkerError: where workers die before they have a trial, again and again.
        """
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
            raise _own(error, slot) from None
        except self._ray.exceptions.RayError as error:
            return self._replace(number, error)
        if slot.state == "starting":
            slot.node, slot.cores = result[0], self._choose_cores(*result)
            slot.state, slot.pending = "loading", slot.actor.load.remote(self._job, slot.cores)
        elif slot.state == "loading":
            slot.state, slot.process, self._waited = "free", result, 0.0
        else:
            if isinstance(result, Outcome):
                slot.state = "free"
                self._deaths_without_trial = 0
            return number, result
        return None

    def _choose_cores(self, node: str, cores: Sequence[int]) -> list[int]:
        """A worker's share of its node's cores: those with the fewest workers on them."""
        number = max(int(self._resources["num_cpus"]), 1)
        chosen = sorted(cores, key=lambda core: (self._cores[node, core], core))[:number]
        self._cores.update((node, core) for core in chosen)
        return sorted(chosen)

    def _replace(self, number: int, error: Exception) -> tuple[int, Died] | None:
        slot = self._slots[number]
        order, self._cores = slot.order, self._cores - Counter((slot.node, c) for c in slot.cores)
        busy = slot.state == "busy"
        self._begin(slot)
        if not busy or order is None:
            self._deaths_without_trial += 1
            if self._deaths_without_trial > MOST_DEATHS * len(self._slots):
                reason = " ".join(str(error).split())
                raise WorkerError(f"workers die before they have a trial: {reason}") from error
            return None
        self._deaths[order.place] += 1
        failed = self._deaths[order.place] >= MOST_DEATHS
        warnings.warn(
            f"worker {number} died in the trial at place {order.place} of the search; another "
            f"takes its place, and the trial {'is given up' if failed else 'is trained again'}",
            RuntimeWarning,
            stacklevel=5,
        )
        return number, Died(died(MOST_DEATHS) if failed else None)

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


class _Slot:
    """A worker, or one that is to be."""

    actor: Any = None
    pending: Any = None
    state = "starting"  # then "loading", "free" or "busy"
    order: Order | None = None
    process: Mapping[str, Any] = {}
    node = ""
    cores: Sequence[int] = ()


@contextmanager
def ray_pool(workers: Workers, job: Job) -> Iterator[RayPool]:
    """A pool of workers, with Ray started for it where there is none.

    Raises:
      ModuleNotFoundError: where Ray is not installed.
      WorkerError: where no cluster answers at the address.
    """
    ray = _import_ray()
    begun = not ray.is_initialized()
    if begun:
        with warnings.catch_warnings():  # JAX warns of forks; these become other programs at once
            warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
            _begin_ray(ray, workers)
    try:
        pool = RayPool(workers, job)
        try:
            yield pool
        finally:
            pool.close()
    finally:
        if begun:  # a cluster is left, and not ended
            ray.shutdown()


def check_ray() -> None:
    """Raises ModuleNotFoundError where Ray is not installed."""
    _import_ray()


def _import_ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'workers above 1 need the package ray: pip install "jdss-jax[ray]"'
        ) from error
    return ray


def _begin_ray(ray: Any, workers: Workers) -> None:
    import jax

    quiet = {"include_dashboard": False, "logging_level": "ERROR"}
    address = workers.address or os.environ.get("RAY_ADDRESS")
    if address and address != "local":
        try:
            ray.init(address, logging_level="ERROR")
        except ConnectionError as error:
            raise WorkerError(f"no Ray cluster answers at {address!r}: {error}") from error
        return
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
        os.environ.setdefault(name, "0")
    cores = len(_cores())
    cpus = max(cores, workers.number * max(int(workers.cpus or 1), 1))
    gpus = jax.local_device_count() if jax.default_backend() == "gpu" else 0
    ray.init("local", num_cpus=cpus, num_gpus=gpus, **quiet)


def _share(ray: Any, workers: Workers) -> dict[str, float]:
    """What each worker takes of CPUs and GPUs: as asked, or an equal share of what there is."""
    there, share = ray.cluster_resources(), {}
    for name, asked in (("CPU", workers.cpus), ("GPU", workers.gpus)):
        equal = there.get(name, 0.0) / workers.number
        # Ray takes whole numbers above one; of a CPU that is shared, each has all its time slices.
        share[f"num_{name.lower()}s"] = asked if asked is not None else _rounded(equal)
    return share


def _rounded(share: float) -> float:
    return float(int(share)) if share >= 1 else int(share * 100) / 100


def _cores() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))  # macOS has no affinity; then the shares are not kept


def _own(error: Any, slot: _Slot) -> BaseException:
    """The user's own error, with a note on the worker in which it came up."""
    cause: BaseException = error.cause if isinstance(error.cause, BaseException) else error
    cause.add_note(f"in a worker, process {slot.process.get('pid')}:\n{error}")
    return cause
