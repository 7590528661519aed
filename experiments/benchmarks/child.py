"""A solver in a process of its own, so that its memory can be told from everything else's.

`python -m experiments.benchmarks.child TASK PROBLEM.npz OPTIONS`, started by `measuring.in_child`.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jdss
from experiments.benchmarks.measuring import peak_bytes, reset_peak, resident_bytes
from jdss.solvers.facility_location import facility_location_of_gradients


def matrix_free(gradients: jdss.FactoredGradients, labels: Any, budget: int) -> Any:
    del labels
    return facility_location_of_gradients(gradients, budget, matrix=False)


def grad_match(gradients: jdss.FactoredGradients, labels: np.ndarray, budget: int) -> Any:
    return jdss.per_class(jdss.grad_match, labels, int(labels.max()) + 1)(gradients, budget)


def craig(gradients: jdss.FactoredGradients, labels: np.ndarray, budget: int) -> Any:
    return jdss.per_class(jdss.craig, labels, int(labels.max()) + 1)(gradients, budget)


TASKS: Mapping[str, Callable[..., Any]] = {
    "matrix_free": matrix_free,
    "grad_match": grad_match,
    "craig": craig,
}


def main() -> None:
    task, problem, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    size, repeats = options.pop("size", None), options.pop("repeats", 1)
    jax.block_until_ready(jnp.zeros(1))  # JAX itself is no part of what is asked.
    before = resident_bytes()
    with np.load(problem) as arrays:
        labels = arrays["labels"][:size]
        gradients = jdss.FactoredGradients(
            jnp.asarray(arrays["errors"][:size]), jnp.asarray(arrays["inputs"][:size])
        )
    jax.block_until_ready(gradients)
    inputs_bytes = gradients.errors.nbytes + gradients.inputs.nbytes
    reset_peak()
    seconds, cpu_seconds = [], []
    for _ in range(1 + repeats):
        start, cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(TASKS[task](gradients, labels, **options))
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu)
    peak = peak_bytes()
    # Without repeats the only run counts, compilation and all.
    counted = slice(1 if repeats else 0, None)
    median = float(np.median(seconds[counted]))
    report = {
        "seconds": median,
        "cpu_seconds": float(np.median(cpu_seconds[counted])),
        "compiling_seconds": max(seconds[0] - median, 0.0) if repeats else None,
        "runs": max(repeats, 1),
        "peak_bytes": peak,
        "bytes_above_inputs": None
        if peak is None or before is None
        else peak - before - inputs_bytes,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
