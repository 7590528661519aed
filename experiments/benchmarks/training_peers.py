"""The two sides of each training benchmark, and a process that times one of them on demand.

A side is built in a process of its own, so that PyTorch's threads and XLA's never meet, and each
can have the devices and threads it wants. `python -m experiments.benchmarks.training_peers CASE
SIDE` builds it, does everything once (which compiles), says "ready", and then runs it once for
every line it reads, answering with the seconds.

Images are random: what a step costs does not depend on them. Both sides hold uint8 images in
memory, gather a shuffled batch, normalise it, and do a whole step: forward, backward, and SGD with
momentum. PyTorch's side is a plain loop over arrays, without a data loader.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

Run = Callable[[], None]


@dataclass(frozen=True)
class Case:
    """What is timed: `steps` training steps, or, with none, one forward pass over all images."""

    model: str  # "lenet", or "resnet18"
    images: int
    shape: tuple[int, int, int]
    batch_size: int
    steps: int = 0
    width: int = 64

    @property
    def work(self) -> int:
        """Images that one run sees."""
        return self.steps * self.batch_size or self.images


CASES = {
    "lenet-32": Case("lenet", 54_000, (28, 28, 1), 32, steps=200),
    "lenet-128": Case("lenet", 54_000, (28, 28, 1), 128, steps=80),
    "lenet-forward": Case("lenet", 54_000, (28, 28, 1), 512),
    "resnet18-16": Case("resnet18", 2_000, (32, 32, 3), 64, steps=3, width=16),
    "resnet18-64": Case("resnet18", 2_000, (32, 32, 3), 64, steps=1, width=64),
}
SIDES = {
    "jdss": {},
    "jdss, a device a core": {"devices": True},
    "jdss, a dispatch a step": {"one_step": True},
    "torch": {},
    "torch, 1 thread": {"threads": 1},
    "torch, channels last": {"channels_last": True},
}


def _images(case: Case) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (case.images, *case.shape), dtype=np.uint8)
    return images, generator.integers(0, 10, case.images)


def jdss_side(case: Case, *, devices: bool = False, one_step: bool = False) -> Run:
    """`jdss.train_on_subset`, or the forward pass of a selection round."""
    import jax

    import jdss

    if devices:
        jax.config.update("jax_num_cpu_devices", _cores())
    data = jdss.make_examples(*_images(case))
    size = case.images
    subset = jdss.Subset(jax.numpy.arange(size), jax.numpy.ones(size), jax.numpy.int32(size))
    model: Any = jdss.models.LeNet(10)
    if case.model == "resnet18":
        model = jdss.models.ResNet18(10, width=case.width)
    state = jdss.init_state(model, data.inputs, jax.random.key(0))
    hyper = jdss.hyperparameters(learning_rate=0.01, batch_size=case.batch_size)

    def train() -> None:
        nonlocal state
        for _ in range(case.steps if one_step else 1):
            state, metrics = jdss.train_on_subset(
                state,
                data,
                subset,
                hyper,
                jax.random.key(1),
                num_steps=1 if one_step else case.steps,
            )
        assert np.isfinite(float(metrics.loss))

    def forward() -> None:
        indices = np.arange(size)
        jax.block_until_ready(
            jdss.compute_gradients(state, data, indices, chunk_size=case.batch_size)
        )

    return train if case.steps else forward


def torch_side(case: Case, *, threads: int | None = None, channels_last: bool = False) -> Run:
    """The same in PyTorch."""
    import torch
    from torch.nn import functional

    torch.set_num_threads(threads or _cores())
    torch.manual_seed(0)
    images, labels = _images(case)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    stored = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(memory_format=layout)
    targets = torch.from_numpy(labels)
    model = _torch_lenet() if case.model == "lenet" else _torch_resnet18(case.width)
    model = model.to(memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def batch(indices: Any) -> Any:
        return (stored[indices].float() / 255 - 0.5) / 0.25

    def train() -> None:
        order = torch.randperm(case.images)
        for step in range(case.steps):
            indices = order[step * case.batch_size :][: case.batch_size]
            loss = functional.cross_entropy(model(batch(indices)), targets[indices])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert np.isfinite(loss.item())

    def forward() -> None:
        model.eval()
        with torch.inference_mode():
            starts = range(0, case.images, case.batch_size)
            torch.cat([model(batch(slice(start, start + case.batch_size))) for start in starts])

    return train if case.steps else forward


def _torch_lenet() -> Any:
    from torch import nn

    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(6, 16, 5), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(400, 120), nn.ReLU()),
        *(nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


def _torch_resnet18(width: int) -> Any:
    from torch import nn

    def conv(inputs: int, outputs: int, size: int, stride: int) -> list[Any]:
        return [
            nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False),
            nn.BatchNorm2d(outputs),
        ]

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            same = stride == 1 and inputs == outputs
            self.shortcut = nn.Sequential(*([] if same else conv(inputs, outputs, 1, stride)))
            self.body = nn.Sequential(
                *conv(inputs, outputs, 3, stride), nn.ReLU(), *conv(outputs, outputs, 3, 1)
            )

        def forward(self, x: Any) -> Any:
            return (self.body(x) + self.shortcut(x)).relu()

    layers, features = [*conv(3, width, 3, 1), nn.ReLU()], width
    for stage in range(4):
        for i in range(2):
            layers.append(Block(features, width * 2**stage, 2 if stage and i == 0 else 1))
            features = width * 2**stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, 10))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def build(case: str, side: str) -> Run:
    """What one side of a case runs."""
    options: Any = SIDES[side]
    make: Any = jdss_side if side.startswith("jdss") else torch_side
    return make(CASES[case], **options)


def serve(case: str, side: str) -> None:
    """Times one side for every line of the standard input."""
    run = build(case, side)
    start = time.perf_counter()
    run()
    print("ready", time.perf_counter() - start, flush=True)
    for _ in sys.stdin:
        start, cpu = time.perf_counter(), time.process_time()
        run()
        print(time.perf_counter() - start, time.process_time() - cpu, flush=True)


def in_turns(case: str, sides: Sequence[str], *, repeats: int) -> dict[str, dict[str, Any]]:
    """Runs every side of a case in turns, so that what else the machine does falls on all alike.

    Args:
      case: of `CASES`.
      sides: of `SIDES`.
      repeats: how often each side is timed, after one run that is not.

    Returns:
      For every side: the `seconds` of each run, their `median`, the `cpu_seconds` of each run, and
      `first`, the first run's seconds, compilation included.
    """
    with ExitStack() as stack:
        peers: dict[str, Any] = {}
        for side in sides:
            command = [sys.executable, "-m", "experiments.benchmarks.training_peers", case, side]
            pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            peers[side] = stack.enter_context(subprocess.Popen(command, **pipes))
        found: dict[str, dict[str, Any]] = {}
        for side, peer in peers.items():
            found[side] = {"first": float(_answer(side, peer)[1]), "seconds": [], "cpu_seconds": []}
        for _ in range(repeats):
            for side, peer in peers.items():
                peer.stdin.write("run\n")
                peer.stdin.flush()
                seconds, cpu_seconds = map(float, _answer(side, peer))
                found[side]["seconds"].append(seconds)
                found[side]["cpu_seconds"].append(cpu_seconds)
        for peer in peers.values():
            peer.stdin.close()
    for result in found.values():
        result["median"] = statistics.median(result["seconds"])
    return found


def _answer(side: str, peer: Any) -> list[str]:
    line = peer.stdout.readline()
    if not line:
        raise RuntimeError(f"{side} ended with status {peer.wait()}")
    return line.split()


if __name__ == "__main__":
    serve(*sys.argv[1:])
