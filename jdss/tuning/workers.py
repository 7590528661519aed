"""Several worker processes on one machine, which share a study through its storage.

A worker is a process that runs `jdss.tune` with the arguments of the one that started it, less
the retraining: it joins the study as a command on another machine would, and nothing but the
storage connects the two. Workers are new interpreters rather than forks, since JAX's threads and
devices do not survive a fork.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import cloudpickle
import jax
import optuna

from jdss import _checks
from jdss.progress import ProgressBar, progress_bar
from jdss.tuning.resuming import finished_trials
from jdss.tuning.storage import RANK

_CORES = "JDSS_CORES"
_PROGRAM = "from jdss.tuning.workers import main; main()"
_PAUSE = 0.2  # seconds between two looks at the workers
_LOOK_EVERY = 1.0  # seconds between two looks at the study, which cost its database something
_PATIENCE = 30.0  # seconds that workers have to tell the storage that they are interrupted
_INTERRUPTED = 130  # what a shell reports of a command that Ctrl-C stopped

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
    """Workers died or failed, and the search cannot go on; the message says where to look."""


def check_workers(workers: Any, storage: Any) -> int:
    """Checks the number of workers, and that several can share the storage.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    workers = _checks.check_positive_int("workers", workers)
    in_memory = isinstance(storage, optuna.storages.InMemoryStorage) or (
        isinstance(storage, str) and storage in ("sqlite://", "sqlite:///", "sqlite:///:memory:")
    )
    if workers > 1 and (storage is None or in_memory):
        raise ValueError(
            "storage must be one that processes can share where there are several workers, such "
            f"as 'sqlite:///search.db' or 'postgresql://user@host/database'; got {storage!r}"
        )
    return workers


def run_workers(
    study: optuna.Study, arguments: Mapping[str, Any], workers: int, *, progress: bool = True
) -> None:
    """Runs a search in several processes, until every trial is finished.

    A worker that is killed is replaced. Ctrl-C is passed on: each worker tells the storage that
    its trial was interrupted.

    Args:
      study: which they share, made and with its enqueued trials.
      arguments: of `jdss.tune`; storage and study name among them.
      workers: how many processes.

    Raises:
      WorkerError: where workers die again and again.
      Exception: the one that a worker stopped with; a note on it says where its log is.
    """
    crew = _Crew(Path(tempfile.mkdtemp(prefix="jdss-workers-")), workers)
    trials = arguments["trials"]
    try:
        crew.write_task(
            {**arguments, "workers": 1, "retrain": False, "save_to": None, "test": None}
        )
        with progress_bar(trials, f"{workers} workers", enabled=progress) as bar:
            try:
                crew.start()
                while crew.look_after(study, trials, bar):
                    time.sleep(_PAUSE)
            except BaseException:
                crew.stop()
                raise
    finally:
        crew.clear_up()


class _Crew:
    """The worker processes, and the directory with their task and their logs."""

    def __init__(self, directory: Path, workers: int) -> None:
        self.directory = directory
        self.trouble = False
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._seats = assign_seats(
            workers, jax.local_devices()[0].platform, jax.local_device_count()
        )
        self._deaths = 0  # since a trial was last finished
        self._finished = -1
        self._interrupted = False
        self._next_look = 0.0

    def write_task(self, arguments: Mapping[str, Any]) -> None:
        configuration = {name: getattr(jax.config, name) for name in _CONFIGURATION}
        # For this user only: the storage's URL may have a password in it.
        with open(self.directory / "task", "wb", opener=_private) as file:
            cloudpickle.dump((configuration, {**arguments, "progress": False}), file)

    def clear_up(self) -> None:
        """Removes the directory, or all but the logs where a message has named them."""
        if not self.trouble:
            shutil.rmtree(self.directory, ignore_errors=True)
            return
        for path in self.directory.iterdir():
            if path.suffix != ".log":
                path.unlink(missing_ok=True)

    def start(self) -> None:
        for rank in range(len(self._seats)):
            self._processes[rank] = self._start(rank)

    def _start(self, rank: int) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            **self._seats[rank],
            RANK: str(rank),
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            "PYTHONUNBUFFERED": "1",
        }
        with open(self.log(rank), "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, str(self.directory), str(rank)],
                env=environment,
                stdin=subprocess.PIPE,  # held open: a worker ends when its parent is gone
                stdout=log,
                stderr=log,
                start_new_session=True,  # a terminal's Ctrl-C comes once, through this process
            )

    def log(self, rank: int) -> Path:
        return self.directory / f"worker-{rank}.log"

    def look_after(self, study: optuna.Study, trials: int, bar: ProgressBar) -> bool:
        """Replaces workers that were killed; returns whether any are left."""
        ended = any(process.poll() is not None for process in self._processes.values())
        if ended or time.monotonic() >= self._next_look:
            self._show(study, bar)
            self._next_look = time.monotonic() + _LOOK_EVERY
        for rank, process in list(self._processes.items()):
            code = process.poll()
            if code is None:
                continue
            del self._processes[rank]
            assert process.stdin is not None
            process.stdin.close()
            if code < 0:
                self._replace(rank, -code)
            elif code == _INTERRUPTED:  # by somebody else: one worker less is wanted
                self._interrupted = True
            elif code:
                self.trouble = True
                raise self._error(rank)
        if not self._processes and self._interrupted and self._finished < trials:
            raise WorkerError(
                f"all workers were interrupted when {max(self._finished, 0)} of {trials} trials "
                "were finished: run the same command again to go on"
            )
        return bool(self._processes)

    def _show(self, study: optuna.Study, bar: ProgressBar) -> None:
        finished = len(finished_trials(study))
        if finished > self._finished:
            self._finished, self._deaths = finished, 0
            values = [t.value for t in study.get_trials(deepcopy=False) if t.value is not None]
            better = max if study.direction == optuna.study.StudyDirection.MAXIMIZE else min
            bar.advance(finished, best=better(values, default=None))

    def _replace(self, rank: int, number: int) -> None:
        self.trouble = True
        self._deaths += 1
        name = signal.Signals(number).name
        if self._deaths > max(8, 2 * len(self._seats)):
            raise WorkerError(
                f"{self._deaths} workers died, the last one by {name}, and no trial was finished "
                f"meanwhile; their logs are in {self.directory}"
            )
        warnings.warn(
            f"worker {rank} was killed by {name}; another takes its place, and its trial is run "
            f"again (its log is {self.log(rank)})",
            RuntimeWarning,
            stacklevel=4,
        )
        self._processes[rank] = self._start(rank)

    def _error(self, rank: int) -> BaseException:
        """What a worker stopped with."""
        where = f"in worker {rank}, whose log is {self.log(rank)}"
        try:
            with open(self.directory / f"error-{rank}", "rb") as file:
                error: BaseException = cloudpickle.load(file)
        except Exception:  # it could not be written, or not be read here
            lines = self.log(rank).read_text(errors="replace").splitlines()
            return WorkerError(f"{lines[-1] if lines else 'a worker failed'} ({where})")
        error.add_note(where)
        return error

    def stop(self) -> None:
        """Interrupts all workers and waits until they have told the storage; then kills them."""
        for process in self._processes.values():
            process.send_signal(signal.SIGINT)
        end = time.monotonic() + _PATIENCE
        try:
            for process in self._processes.values():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, end - time.monotonic()))
        finally:  # also where Ctrl-C is pressed again
            for process in self._processes.values():
                if process.poll() is None:
                    process.kill()
                    process.wait()


def assign_seats(workers: int, platform: str, num_devices: int) -> list[dict[str, str]]:
    """The environment variables that give each worker its share of the machine.

    On GPUs each worker sees one, in turn. On the CPU each has its own cores, which is also how
    XLA decides on its number of threads: workers that all use all cores slow each other down.
    """
    if platform == "gpu":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        names = [name for name in visible.split(",") if name] or list(map(str, range(num_devices)))
        shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # with other workers and the parent
        return [
            {"CUDA_VISIBLE_DEVICES": names[rank % len(names)], **shared} for rank in range(workers)
        ]
    if platform != "cpu":
        return [{}] * workers
    shares = share_cores(sorted(_cores()), workers)
    flags = os.environ.get("XLA_FLAGS", "").split()
    kept = " ".join(flag for flag in flags if "host_platform_device_count" not in flag)
    return [
        {_CORES: ",".join(map(str, share)), "XLA_FLAGS": kept, "JAX_NUM_CPU_DEVICES": "1"}
        for share in shares
    ]


def share_cores(cores: Sequence[int], workers: int) -> list[Sequence[int]]:
    """Each worker's cores: disjoint as long as there is one for each.

    Example:
      >>> share_cores([0, 1, 2, 3, 4], 2)
      [[0, 1], [2, 3, 4]]
      >>> share_cores([0, 1], 3)
      [[0], [1], [0]]
    """
    if workers >= len(cores):
        return [[cores[rank % len(cores)]] for rank in range(workers)]
    ends = [len(cores) * rank // workers for rank in range(workers + 1)]
    return [cores[start:end] for start, end in pairwise(ends)]


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, mode=0o600)


def _cores() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))  # macOS has no affinity; then the shares are not kept


# In the worker ----------------------------------------------------------------------------------


def _work(directory: Path, rank: int) -> int:
    """What a worker does; returns its exit status."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # A machine that is about to be taken away sends SIGTERM: the storage is told, as by Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored, as under nohup
    try:
        cores = os.environ.get(_CORES)
        if cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, [int(core) for core in cores.split(",")])
        with open(directory / "task", "rb") as file:
            configuration, arguments = cloudpickle.load(file)
        for name, value in configuration.items():
            jax.config.update(name, value)

        from jdss.tuning.study import SearchFailedError
        from jdss.tuning.tune import tune

        with contextlib.suppress(SearchFailedError):  # which the parent finds itself
            tune(**arguments)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except Exception as error:
        traceback.print_exc()
        with contextlib.suppress(Exception):
            content = cloudpickle.dumps(error)
            (directory / f"error-{rank}").write_bytes(content)
        return 1
    return 0


def _end_with_parent() -> None:
    """Interrupts this process when the parent's end of the pipe is closed."""
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGINT)


def main() -> None:
    """What a worker's interpreter runs: arguments are the directory and the worker's number."""
    sys.exit(_work(Path(sys.argv[1]), int(sys.argv[2])))
