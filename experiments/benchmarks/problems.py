"""The problems that the benchmarks solve: gradients of a trained network, or a stated synthetic."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

import jdss
from jdss.data.datasets import DatasetNotPreparedError

# In a trial of 20 epochs on 5% with half of the budget for the warm start, selection comes first
# after half an epoch on all data (κ · T · fraction).
_WARM_START_EPOCHS = 0.5


@dataclass(frozen=True)
class Trained:
    """A network in the middle of training, and the examples that it is trained on.

    Attributes:
      description: of the network and its data, for the report.
      state: the network.
      examples: all training examples; `train` and `validation` index them.
      labels: int32[n], of the examples in `train`.
    """

    description: str
    state: jdss.TrainState
    examples: jdss.Examples
    train: np.ndarray
    validation: np.ndarray
    labels: np.ndarray
    num_classes: int


def trained_lenet(size: int | None = None, *, seed: int = 0) -> Trained:
    """LeNet on MNIST after half an epoch on 90% of it; on random images where MNIST is missing.

    Args:
      size: of the training set, before a tenth is split off; None takes the 60,000 of MNIST.
      seed: for the split, the weights and the order of the examples.
    """
    try:
        mnist = jdss.load_dataset("mnist").head(size)
        images, labels, name = mnist.images, mnist.labels, "MNIST"
    except DatasetNotPreparedError:
        images, labels = _random_digits(size or 60_000, seed)
        name = "random images of ten prototypes (MNIST is not prepared in TFDS_DATA_DIR)"
    train, validation = jdss.stratified_split(labels, 0.1, seed=seed)
    examples = jdss.make_examples(images, labels, statistics_of=train)
    everything = jdss.Subset(
        jnp.asarray(train), jnp.ones(len(train), jnp.float32), jnp.int32(len(train))
    )
    hyper = jdss.hyperparameters(learning_rate=0.05, batch_size=128)
    num_steps = max(1, int(_WARM_START_EPOCHS * len(train) / hyper.batch_size))
    state = jdss.init_state(jdss.models.LeNet(10), examples.inputs, jax.random.key(seed))
    state, _ = jdss.train_on_subset(
        state, examples, everything, hyper, jax.random.key(seed + 1), num_steps=num_steps
    )
    description = f"LeNet after {num_steps} steps on {len(train):,} examples of {name}"
    return Trained(
        description, state, examples, train, validation, np.asarray(labels)[train], num_classes=10
    )


def _random_digits(size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy, shifted copies of ten smooth prototypes: uint8[n, 28, 28, 1] and their labels."""
    generator = np.random.default_rng(seed)
    coarse = generator.random((10, 7, 7))
    prototypes = np.kron(coarse, np.ones((4, 4)))
    labels = generator.permutation(np.arange(size) % 10).astype(np.int32)
    shifts = generator.integers(-3, 4, size=(size, 2))
    images = np.empty((size, 28, 28, 1), np.uint8)
    for place, (label, shift) in enumerate(zip(labels, shifts, strict=True)):
        noisy = np.roll(prototypes[label], shift, axis=(0, 1)) + generator.normal(0, 0.3, (28, 28))
        images[place, :, :, 0] = np.clip(255 * noisy, 0, 255)
    return images, labels


def one_class(trained: Trained, size: int) -> jdss.FactoredGradients:
    """Gradients of the first `size` examples of a class that has as many, errors and inputs."""
    counts = np.bincount(trained.labels, minlength=trained.num_classes)
    size = min(size, int(counts.max()))
    label = int(np.flatnonzero(counts >= size)[0])
    members = trained.train[trained.labels == label][:size]
    return jdss.compute_gradients(trained.state, trained.examples, members)


def dense(gradients: jdss.FactoredGradients) -> np.ndarray:
    """The rows float32[n, c · d] themselves, for libraries that take nothing else."""
    errors, inputs = np.asarray(gradients.errors), np.asarray(gradients.inputs)
    return (errors[:, :, None] * inputs[:, None, :]).reshape(len(errors), -1)


def without_optimizer(trained: Trained) -> Trained:
    """The same without the optimizer's slots, which nothing here reads."""
    return replace(trained, state=replace(trained.state, optimizer_slots=()))
