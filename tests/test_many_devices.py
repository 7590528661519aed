"""Four devices, and two processes, compute what one device does."""

import socket

import jax
import numpy as np
import pytest

import jdss
from jdss import parallel
from jdss.training.ahead import _can_be_tried
from jdss.training.hyperparameters import OPTIMIZERS
from jdss.training.schedule import make_schedule
from tests.simulated_devices import on_devices, read, start

N, C = 30, 3


def everything():
    """A network with BatchNorm, augmented, trained and passed forward; arrays by name.

    The batches, of 5, the last of 3, and the chunks, of 7, divide by neither four nor two.
    """
    generator = np.random.default_rng(1)
    images = generator.integers(0, 256, (N, 8, 8, 3), dtype=np.uint8)
    data = jdss.make_examples(images, np.arange(N) % C, augmentation="crop_flip")
    model = jdss.models.ResNet(C, width=4, repetitions=(1,))
    only_sgd = {"sgd": OPTIMIZERS["sgd"]}  # compiles faster than the whole family
    state = jdss.init_state(model, data.inputs, jax.random.key(0), optimizers=only_sgd)
    indices = np.flatnonzero(np.arange(N) != 7)[:23].astype(np.int32)
    weights = np.linspace(0.5, 3, len(indices)).astype(np.float32)
    hyper = jdss.hyperparameters(
        {"label_smoothing": 0.1, "gradient_clipping": 0.5, "weight_decay": 1e-3},
        learning_rate=0.1,
        learning_rate_schedule="cosine",
        batch_size=5,
    )
    state, metrics = jdss.train_on_subset(
        state,
        data,
        jdss.Subset(jax.numpy.asarray(indices), jax.numpy.asarray(weights), 23),
        hyper,
        jax.random.key(3),
        num_steps=7,
    )
    found = jdss.compute_gradients(state, data, np.arange(9), chunk_size=7)
    leaves = jax.tree_util.tree_leaves_with_path((state.variables, metrics, found))
    results = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    return {**results, "devices": jax.device_count(), "processes": jax.process_count()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The results here, on four simulated devices, and of both of two processes."""
    directory = tmp_path_factory.mktemp("devices")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    join = (
        "import jax\n"
        "jax.config.update('jax_cpu_collectives_implementation', 'gloo')\n"
        f"jax.distributed.initialize({address!r}, 2, {{}})"
    )
    paths = [directory / f"{name}.npz" for name in ("four", "first", "second")]
    processes = [
        start(everything, paths[0], devices=4),
        start(everything, paths[1], devices=1, before=join.format(0)),
        start(everything, paths[2], devices=1, before=join.format(1)),
    ]
    try:
        here = everything()
        return here, *map(read, processes, paths)
    finally:
        for process in processes:
            process.kill()


def assert_same(here, there):
    assert here.keys() == there.keys()
    for name in here.keys() - {"devices", "processes"}:
        np.testing.assert_allclose(there[name], here[name], rtol=2e-4, atol=2e-5, err_msg=name)


def test_four_devices_compute_what_one_does_batch_norm_and_augmentation_included(runs):
    here, four, _, _ = runs
    assert (here["devices"], four["devices"]) == (1, 4)
    assert_same(here, four)


def test_two_processes_compute_what_one_does_and_both_have_it_all(runs):
    here, _, first, second = runs
    for process in (first, second):
        assert (process["devices"], process["processes"]) == (2, 2)
        assert_same(here, process)


def one_at_a_time():
    def take_long(device, x):
        return jax.lax.psum(jax.lax.fori_loop(0, 200, lambda _, y: y @ x, x), parallel.AXIS)

    result = parallel.parallel(take_long)(np.eye(500, dtype=np.float32))
    tried = _can_be_tried(make_schedule("grad_match", 0.5))
    return {"ready": result.is_ready(), "tried": tried}


def test_no_two_programs_with_collectives_are_run_at_once(tmp_path):
    """Each may hold threads, or devices, that the other waits for: a search hung on two."""
    one, four = on_devices(one_at_a_time, (1, 4), tmp_path)
    assert four["ready"]
    assert not four["tried"]
    assert one["tried"]
