"""Training beside PyTorch: `python -m experiments.benchmarks.training [--only CASE …]`.

- `lenet-32`, `lenet-128`: training steps, images a second.
- `lenet-forward`: a forward pass over 54,000 images, which bounds every selection round.
- `resnet18-16`, `resnet18-64`: training steps of batch 64, at two widths.

A side is built in a process of its own, so that PyTorch's threads and XLA's never meet, and each
can have the devices and threads it wants. Images are random: what a step costs does not depend on
them. Both sides hold uint8 images in memory, gather a shuffled batch, normalise it, and do a whole
step: forward, backward, and SGD with momentum. Every case is written into the result file as soon
as it is done; `experiments.report` makes the table of README.md.
"""

import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

import jdss
from experiments.benchmarks.peers import torch_lenet
from experiments.benchmarks.timing import load_average
from experiments.results import RESULTS, cores, environment, write_json

SIDES: dict[str, dict[str, Any]] = {
    "jdss": {},
    "jdss, a device a core": {"devices": True},
    "torch": {},
    "torch, 1 thread": {"threads": 1},
    "torch, channels last": {"channels_last": True},
}


@dataclass(frozen=True)
class Case:
    """What is timed: `steps` training steps, or, with none, one forward pass over all images."""

    images: int
    shape: tuple[int, int, int]
    batch_size: int
    steps: int = 0
    width: int | None = None  # of a ResNet-18; None is LeNet
    goal: float = 1.0  # of the better PyTorch's rate


CASES = {
    "lenet-32": Case(54_000, (28, 28, 1), 32, steps=200),
    "lenet-128": Case(54_000, (28, 28, 1), 128, steps=80),
    "lenet-forward": Case(54_000, (28, 28, 1), 512),
    "resnet18-16": Case(2_000, (32, 32, 3), 64, steps=3, width=16, goal=0.6),
    "resnet18-64": Case(2_000, (32, 32, 3), 64, steps=1, width=64, goal=0.6),
}


def images_of(case: Case) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (case.images, *case.shape), dtype=np.uint8)
    return images, generator.integers(0, 10, case.images)


def jdss_side(case: Case, *, devices: bool = False) -> Callable[[], None]:
    """`jdss.train_on_subset`, or the forward pass of a selection round."""
    if devices:
        jax.config.update("jax_num_cpu_devices", cores())
    data, size = jdss.make_examples(*images_of(case)), case.images
    subset = jdss.Subset(jax.numpy.arange(size), jax.numpy.ones(size), jax.numpy.int32(size))
    model = jdss.models.ResNet18(10, width=case.width) if case.width else jdss.models.LeNet(10)
    state = jdss.init_state(model, data.inputs, jax.random.key(0))
    hyper = jdss.hyperparameters(learning_rate=0.01, batch_size=case.batch_size)

    def train() -> None:
        nonlocal state
        state, found = jdss.train_on_subset(
            state, data, subset, hyper, jax.random.key(1), num_steps=case.steps
        )
        assert np.isfinite(float(found.loss))

    def forward() -> None:
        everyone, chunk = np.arange(size), case.batch_size
        jax.block_until_ready(jdss.compute_gradients(state, data, everyone, chunk_size=chunk))

    return train if case.steps else forward


def torch_side(
    case: Case, *, threads: int | None = None, channels_last: bool = False
) -> Callable[[], None]:
    """The same in PyTorch."""
    import torch

    torch.set_num_threads(threads or cores() or 1)
    torch.manual_seed(0)
    images, labels = images_of(case)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    stored = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(memory_format=layout)
    targets = torch.from_numpy(labels)
    model = torch_resnet18(case.width) if case.width else torch_lenet()
    model = model.to(memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def logits(images: Any) -> Any:
        return model((images.float() / 255 - 0.5) / 0.25)

    def train() -> None:
        for indices in torch.randperm(case.images).split(case.batch_size)[: case.steps]:
            loss = torch.nn.functional.cross_entropy(logits(stored[indices]), targets[indices])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert np.isfinite(loss.item())

    def forward() -> None:
        model.eval()
        with torch.inference_mode():
            torch.cat([logits(part) for part in stored.split(case.batch_size)])

    return train if case.steps else forward


def torch_resnet18(width: int) -> Any:
    """For 32 × 32 images, as `jdss.models.ResNet18`."""
    from torch import nn

    def conv(inputs: int, outputs: int, size: int, stride: int) -> list[Any]:
        layer = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
        return [layer, nn.BatchNorm2d(outputs)]

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            same = stride == 1 and inputs == outputs
            self.shortcut = nn.Sequential(*([] if same else conv(inputs, outputs, 1, stride)))
            first, second = conv(inputs, outputs, 3, stride), conv(outputs, outputs, 3, 1)
            self.body = nn.Sequential(*first, nn.ReLU(), *second)

        def forward(self, x: Any) -> Any:
            return (self.body(x) + self.shortcut(x)).relu()

    widths = [width * 2 ** (place // 2) for place in range(8)]
    blocks = [
        Block(inputs, outputs, 1 if inputs == outputs else 2)
        for inputs, outputs in zip([width, *widths], widths, strict=False)
    ]
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, 10)
    return nn.Sequential(*conv(3, width, 3, 1), nn.ReLU(), *blocks, *head)


@cache
def build(case: str, side: str) -> Callable[[], None]:
    make: Any = jdss_side if side.startswith("jdss") else torch_side
    return make(CASES[case], **SIDES[side])


def timed(case: str, side: str) -> tuple[float, float]:
    """Seconds and processor seconds of one run, in a process that builds its side once."""
    run = build(case, side)
    start, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - start, time.process_time() - cpu


def against_torch(name: str, sides: Sequence[str], repeats: int) -> dict[str, Any]:
    """Images a second of every side, and of those of jdss over the better PyTorch.

    Sides run in turns, so that what else the machine does falls on all alike; the first run of
    each, in which it compiles, is not counted.
    """
    case, found = CASES[name], {}
    with ExitStack() as stack:
        context = multiprocessing.get_context("spawn")
        pools = {side: stack.enter_context(ProcessPoolExecutor(1, context)) for side in sides}
        runs = [
            {side: pool.submit(timed, name, side).result() for side, pool in pools.items()}
            for _ in range(repeats + 1)
        ]
    for side in sides:
        seconds, cpu_seconds = map(list, zip(*(run[side] for run in runs[1:]), strict=True))
        found[side] = {"seconds": seconds, "median": statistics.median(seconds)}
        found[side] |= {"cpu_seconds": cpu_seconds, "first": runs[0][side][0]}
    work = case.steps * case.batch_size or case.images
    rates = {side: work / one["median"] for side, one in found.items()}
    best = max((rates[side] for side in rates if side.startswith("torch")), default=None)
    ours = {side: rate for side, rate in rates.items() if side.startswith("jdss")}
    return {
        "images_per_second": rates,
        "ratio_to_the_faster_torch": {side: best and rate / best for side, rate in ours.items()},
        "goal": case.goal,
        "sides": found,
    }


def main(
    only: tuple[str, ...] = tuple(CASES),
    sides: tuple[str, ...] = tuple(SIDES),
    repeats: int = 5,
    out: Path = RESULTS / "benchmarks" / "training.json",
) -> None:
    """Times cases, by name, on sides, by name."""
    cases = json.loads(out.read_text())["trials"] if out.exists() else []
    for name in only:
        result = against_torch(name, sides, repeats)
        # Each case carries the run that it comes from; a machine that is shared is said to be.
        about = {"case": name, "load_average": next(iter(load_average()), None), **environment()}
        cases = [one for one in cases if one["case"] != name] + [{**about, **result}]
        cases.sort(key=lambda one: one["case"])
        write_json(out, {**environment(), "trials": cases})
        print(name, result["images_per_second"])


if __name__ == "__main__":
    tyro.cli(main)
