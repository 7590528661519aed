"""Compilation: one program a shape in a search, none at all in a second process."""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.compilations import count_compilations
from jdss import keep_programs, parallel
from tests.settings import tune

OPTIMIZERS = ("sgd", "nesterov", "adam", "adamw")


def space(trial):
    """Ten trials that meet three batch sizes and four optimizers."""
    smooth = trial.number % 2
    return {
        "learning_rate": trial.suggest_float("learning_rate", 1e-3, 1e-2),
        "batch_size": (8, 16, 32)[trial.number % 3],
        "optimizer": OPTIMIZERS[trial.number % 4],
        "epochs": 1 + trial.number % 2,
        "weight_decay": 1e-3 * smooth,
        "label_smoothing": 0.1 * smooth,
        "gradient_clipping": (None, 1.0)[smooth],
        "learning_rate_schedule": ("constant", "cosine")[smooth],
    }


@contextmanager
def pmapped_programs():
    """The parallel programs that XLA compiles meanwhile: training steps and forward passes."""
    found = []

    def listen(event, duration, **more):
        del duration
        if event.endswith("backend_compile_duration") and more.get("fun_name") == "jit(_fun)":
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def search(blobs, perceptron):
    return tune(
        perceptron,
        blobs,
        space=space,
        selection="uniform",
        fraction=0.2,
        trials=10,
        retrain=False,
        progress=False,
    )


def test_ten_trials_of_three_batch_sizes_and_four_optimizers_compile_three_steps(blobs, perceptron):
    parallel.forget_compiled()
    with pmapped_programs() as found:
        result = search(blobs, perceptron)
    tried = [trial["hyperparameters"] for trial in result.trials]
    assert {values["batch_size"] for values in tried} == {8, 16, 32}
    assert {values["optimizer"] for values in tried} == set(OPTIMIZERS)
    assert len(found) == 3 + 1  # a step for each batch size, and the forward pass
    with count_compilations() as again:
        search(blobs, perceptron)
    assert again.compiled == again.read == 0


def test_programs_are_counted_and_forgotten():
    function = jax.jit(lambda x: 3 * x + 1)
    with count_compilations() as count:
        function(1.0), function(2.0), function(jnp.ones(3))
    assert count.compiled + count.read >= 2
    parallel.forget_compiled()
    with count_compilations() as count:
        function(1.0)
    assert count.compiled + count.read == 1


PROGRAM = """
import sys, jax.numpy as jnp, numpy as np
from flax import linen as nn
import jdss
from experiments.compilations import count_compilations
from jdss import keep_programs
from jdss.compilation import cpu_options

keep_programs(sys.argv[1])
# Asked before counting: an XLA without such an option tells it by failing to compile.
cpu_options(runs_often=True), cpu_options(runs_often=False)
generator = np.random.default_rng(0)
data = generator.normal(size=(40, 5)).astype(np.float32), np.arange(40) % 2
with count_compilations() as count:
    result = jdss.fit(
        nn.Dense(2), data, hyperparameters={"epochs": 2, "batch_size": 8}, selection="uniform",
        fraction=0.5, validation=0.2, progress=False,
        task=jdss.Task(optimizers={"sgd": jdss.OPTIMIZERS["sgd"]}))
print(count.compiled, count.read, jnp.sum(result.state.params["kernel"] ** 2))
"""


def run(directory):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(directory)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr
    compiled, read, value = done.stdout.split()
    return int(compiled), int(read), float(value)


def test_a_second_process_compiles_nothing_and_a_damaged_cache_is_no_failure(tmp_path):
    compiled, read, value = run(tmp_path / "cache")
    assert compiled > 5
    again = run(tmp_path / "cache")
    assert again == (0, compiled + read, value)
    for entry in (tmp_path / "cache").iterdir():
        entry.write_bytes(b"not a program")
    damaged = run(tmp_path / "cache")
    assert damaged == (compiled + read, 0, value)


def test_a_cache_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    before = jax.config.jax_compilation_cache_dir
    with pytest.raises(OSError, match="file"):
        keep_programs(tmp_path / "file" / "cache")
    assert jax.config.jax_compilation_cache_dir == before


def test_programs_with_compiler_options_compute_the_same_as_without():
    def function(device, x):
        del device
        return jnp.tanh(x).sum() + jnp.cumsum(x)

    x = np.linspace(-1, 1, 50, dtype=np.float32)
    np.testing.assert_allclose(
        parallel.parallel(function)(x), np.tanh(x).sum() + np.cumsum(x), rtol=1e-5, atol=1e-5
    )
