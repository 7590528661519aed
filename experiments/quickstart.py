"""Two minutes that make the case: `python -m experiments.quickstart`.

scikit-learn's 1,797 digits, which every installation has, become 20,000 images by small random
rotations and shifts. The same eight configurations of a LeNet are tried on all of them, on all of
them with Hyperband, on random 5% subsets and on GRAD-MATCH's 5% subsets with and without ASHA. Each
search's winner is retrained on everything and tested on digits that none has seen. Nothing is
downloaded.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import jdss

SEARCHES: dict[str, tuple[jdss.Selection, str]] = {
    "GRAD-MATCH 5%, ASHA": (jdss.Selection("grad_match"), "asha"),
    "GRAD-MATCH 5%": (jdss.Selection("grad_match"), "none"),
    "random 5%": (jdss.Selection("uniform", every=1, warm_start=0.0), "none"),
    "full data, Hyperband": (jdss.Selection("full"), "hyperband"),
    "full data": (jdss.Selection("full"), "none"),
}


@jax.jit
def moved(image: jax.Array, key: jax.Array) -> jax.Array:
    """An image of 16 × 16 pixels, turned by up to 15° and shifted by up to a pixel."""
    keys = jax.random.split(key)
    angle = jnp.pi / 12 * jax.random.uniform(keys[0], minval=-1.0)
    shift = jax.random.uniform(keys[1], (2,), minval=-1.0)
    place = jnp.stack(jnp.meshgrid(jnp.arange(16), jnp.arange(16), indexing="ij")) - 7.5
    turn = jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])
    at = jnp.einsum("ij,jkl->ikl", turn, place) + 7.5 + shift[:, None, None]
    return jax.scipy.ndimage.map_coordinates(image, list(at), order=1, mode="nearest")


def enlarged(
    images: np.ndarray, labels: np.ndarray, size: int, key: jax.Array
) -> tuple[np.ndarray, np.ndarray]:
    """`size` images made of a few, as uint8[size, 16, 16, 1], and their labels."""
    source = np.arange(size) % len(images)
    keys = jax.random.split(key, size)
    found = jax.vmap(moved)(jnp.asarray(images[source, ..., 0], jnp.float32), keys)
    return np.asarray(found.round(), np.uint8)[..., None], labels[source]


def search(
    name: str, train: Any, validation: Any, test: Any, trials: int, seed: int
) -> jdss.TuneResult:
    """One search. Its sampler draws at random by the seed alone: the same for all of them."""
    selection, pruner = SEARCHES[name]
    return jdss.tune(
        jdss.models.LeNet(num_classes=10),
        train,
        selection=selection,
        trials=trials,
        validation=validation,
        test=test,
        search=jdss.Search(
            space=jdss.default_space(epochs=(6, 8), batch_sizes=(64,)),
            sampler="random",
            pruner=pruner,
        ),
        seed=seed,
    )


def seconds(result: jdss.TuneResult) -> float:
    """Of the search alone, without compilation, which the first search pays for all."""
    return sum(
        spent
        for trial in result.trials
        for line, spent in trial["ledger"]["seconds"].items()
        if line != "compiling"
    )


def chosen(result: jdss.TuneResult) -> int:
    """The place of the winner among the configurations."""
    values = [trial["hyperparameters"] for trial in result.trials]
    return values.index(result.best_hyperparameters)


def draw(found: dict[str, jdss.TuneResult], path: Path) -> None:
    """Seconds from zero, and test accuracy on an axis that begins where guessing is."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    names = list(found)
    left.barh(names, [seconds(result) for result in found.values()], color="#1f4e79")
    left.set_xlabel("seconds of the search, without compilation")
    left.set_xlim(0, 1.15 * max(map(seconds, found.values())))
    right.barh(names, [100 * accuracy(result) for result in found.values()], color="#bcd7ea")
    right.set_xlim(0, 100)
    right.set_xlabel("test accuracy after retraining (%)")
    for axes, values in ((left, seconds), (right, lambda result: 100 * accuracy(result))):
        for place, result in enumerate(found.values()):
            axes.annotate(
                f" {values(result):.1f}",
                (values(result), place),
                va="center",
                ha="left" if axes is left else "right",
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(str(path))


def accuracy(result: jdss.TuneResult) -> float:
    assert result.retraining is not None
    return result.retraining.test_accuracy or 0.0


def closing_line(found: dict[str, jdss.TuneResult]) -> str:
    """What the cheapest search found, beside what full data found."""
    ours, theirs = found["GRAD-MATCH 5%, ASHA"], found["full data"]
    times = seconds(theirs) / seconds(ours)
    scores = f"{accuracy(ours):.1%} and {accuracy(theirs):.1%} on the test set"
    same = chosen(ours) == chosen(theirs)
    what = "the same configuration" if same else "another configuration"
    return f"GRAD-MATCH with ASHA found {what} {times:.0f} times faster ({scores})."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="for the figure")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--images", type=int, default=20_000)
    arguments = parser.parse_args()

    digits = jdss.load_dataset("digits")
    first, held_out = jdss.stratified_split(digits.labels, 0.1, seed=arguments.seed)
    keys = jax.random.split(jax.random.key(arguments.seed), 3)
    parts = ((first, arguments.images), (held_out, arguments.images // 10))
    train, validation = (
        enlarged(digits.images[part], digits.labels[part], size, key)
        for (part, size), key in zip(parts, keys[:2], strict=True)
    )
    test = enlarged(digits.test_images, digits.test_labels, len(digits.test_labels), keys[2])
    found = {}
    for name in SEARCHES:
        found[name] = search(name, train, validation, test, arguments.trials, arguments.seed)
        result = found[name]
        print(
            f"{name:>21}: {seconds(result):6.1f} s, configuration {chosen(result):2}, "
            f"{accuracy(result):.1%} on the test set after retraining"
        )
    draw(found, arguments.out / "quickstart.png")
    print(f"\n{closing_line(found)}\nThe figure is in {arguments.out / 'quickstart.png'}.")


if __name__ == "__main__":
    main()
