"""Selection beyond one device: `python -m experiments.scale`.

Two things, for `docs/scale.md`: what one selection of a million examples takes in bytes and
operations, by each method, from shapes alone; and what two-round distributed greedy (Mirzasoleiman,
Karbasi, Sarkar and Krause, "Distributed Submodular Maximization", JMLR 17, 2016) loses in CRAIG's
objective: each of P devices chooses k of its own part, and k are chosen from the P k that come
together. Devices are simulated; the gradients are those of LeNet on MNIST.
"""

import itertools
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pandas as pd
import tyro

import jdss
from experiments.results import environment, write_json
from jdss.gradients import FactoredGradients


def costs() -> pd.DataFrame:
    """Bytes held and operations of one selection of 5%, class by class where the method is."""
    n, c, d, k = 1_000_000, 1_000, 769, 50_000  # d inputs of the last layer, with the bias
    m, share, factors = n / c, k / c, 4 * n * (c + d)
    rows = {
        # Each of a pursuit's k steps reads the correlations of one class (or of all mini-batches).
        "GRAD-MATCH": (factors + 16 * share**2, k * 2 * m * c * d),
        "GRAD-MATCH, own class": (4 * n * (1 + d) + 16 * share**2, k * 2 * m * d),
        "GRAD-MATCH of mini-batches": (factors, k / 128 * 2 * n * c * d),
        "CRAIG": (factors + 4 * m**2, c * 2 * m**2 * (c + d)),
        # The outer gradient is taken anew over all examples, at every pick or in every round.
        "GLISTER": (2 * factors, k * 2 * n * c * d),
        "GLISTER in 20 rounds": (2 * factors, 20 * 4 * n * c * d),
        "all n × p gradients": (4 * n * c * d, np.nan),
        "n × n similarities": (4 * n**2, np.nan),
    }
    return pd.DataFrame(rows, index=["GiB", "TFLOP"]).T / [2**30, 1e12]


def distances(rows: FactoredGradients, to: np.ndarray) -> np.ndarray:
    """‖g_i - g_j‖ for all rows i and some of them j, float64[n, k]."""
    others = rows.take(jnp.asarray(to))
    products = np.asarray(rows.inner_products(others), np.float64)
    squares = np.asarray(rows.squared_norms())[:, None] + np.asarray(others.squared_norms())
    return np.sqrt(np.maximum(squares - 2 * products, 0.0))


def cost_of(rows: FactoredGradients, chosen: np.ndarray) -> float:
    """CRAIG's objective: the sum of the distances to the nearest chosen gradient."""
    return float(distances(rows, chosen).min(axis=1).sum())


def greedy(rows: FactoredGradients, budget: int) -> np.ndarray:
    return np.asarray(jdss.craig(rows, budget).indices)


def in_two_rounds(rows: FactoredGradients, budget: int, parts: int, seed: int) -> np.ndarray:
    """Indices that two-round distributed greedy chooses, with parts drawn at random.

    In the second round the candidates are the union alone; what they stand for is everyone.
    """
    order = np.random.default_rng(seed).permutation(rows.num_examples)
    split = np.array_split(order, parts)
    union = np.concatenate([part[greedy(rows.take(jnp.asarray(part)), budget)] for part in split])
    to_union = distances(rows, union)
    nearest, chosen = np.full(len(to_union), to_union.max()), []
    for _ in range(budget):
        chosen.append(int(np.maximum(nearest[:, None] - to_union, 0.0).sum(axis=0).argmax()))
        nearest = np.minimum(nearest, to_union[:, chosen[-1]])
    return union[chosen]


def losses(gradients: FactoredGradients, labels: np.ndarray) -> pd.DataFrame:
    """How much larger the objective is than that of greedy on one device, per cent, by class."""
    found = []
    for label in np.unique(labels):
        rows = gradients.take(jnp.asarray(np.flatnonzero(labels == label)))
        budget = max(round(0.05 * rows.num_examples), 1)
        whole = cost_of(rows, greedy(rows, budget))
        random = np.random.default_rng(0).permutation(rows.num_examples)[:budget]
        found.append(("random", cost_of(rows, random) / whole))
        for parts, seed in itertools.product((2, 4, 8), range(3)):
            own = cost_of(rows, in_two_rounds(rows, budget, parts, seed))
            found.append((str(parts), own / whole))
    frame = pd.DataFrame(found, columns=["parts", "ratio"])
    return 100 * (frame.groupby("parts")["ratio"].agg(["mean", "max"]) - 1)


def main(
    images: int = 20_000, data_dir: str | None = None, out: Path = Path("runs/scale.json")
) -> None:
    """What a selection of a million examples takes, and what two rounds of greedy lose on MNIST."""
    million = costs()
    print("A million examples, 1,000 classes, 768 features, 5%:")
    print(million.round(1).to_string())
    mnist = jdss.load_dataset("mnist", data_dir=data_dir).head(images)
    lenet, two = jdss.models.LeNet(num_classes=10), {"epochs": 2}
    fitted = jdss.fit(lenet, mnist, selection="full", hyperparameters=two, progress=False)
    examples = jdss.make_examples(mnist.images, mnist.labels)
    gradients = jdss.compute_gradients(fitted.state, examples, np.arange(len(mnist.labels)))
    lost = losses(gradients, np.asarray(mnist.labels))
    print(f"\nTwo rounds, MNIST, {images:,} images, 5% of each class: % above greedy's")
    print(lost.round(2).to_string())
    known = million.astype(object).where(million.notna(), None)
    tables = {"million": known.to_dict(), "two_rounds_percent": lost.to_dict()}
    write_json(out, {**environment(), "images": images, **tables})


if __name__ == "__main__":
    tyro.cli(main)
