"""Small problems that several tests train on."""

import atexit
import os
import shutil
import signal
import tempfile
import threading

import flax.linen as nn
import numpy as np
import pytest

# Programs and decoded data are kept for one run of the tests, whose processes share them.
_CACHE = tempfile.mkdtemp(prefix="jdss-tests-") if "JDSS_TESTS_CACHE" not in os.environ else None
os.environ.setdefault("JDSS_TESTS_CACHE", _CACHE or "")
os.environ["XDG_CACHE_HOME"] = os.environ["JDSS_TESTS_CACHE"]
if _CACHE:
    atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)

# Read when JAX first looks for devices: several test processes may share one GPU.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

# Ignored where the tests run in the background of a shell script, and then by every process that
# they start; some of those are to be stopped by Ctrl-C.
is_main = threading.current_thread() is threading.main_thread()
if is_main and signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Perceptron(nn.Module):
    """A small network whose output is that of its last dense layer."""

    num_classes: int = 3
    width: int = 8

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(self.width)(x.reshape(len(x), -1)))
        return nn.Dense(self.num_classes)(x)


def make_blobs():
    """Three well separated clouds of points: inputs float32[300, 4] and labels int32[300]."""
    generator = np.random.default_rng(0)
    labels = np.arange(300) % 3
    centres = 3 * generator.normal(size=(3, 4))
    inputs = centres[labels] + generator.normal(size=(300, 4))
    return inputs.astype(np.float32), labels.astype(np.int32)


@pytest.fixture(scope="session")
def blobs():
    return make_blobs()


@pytest.fixture(scope="session")
def perceptron():
    return Perceptron()
