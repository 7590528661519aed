"""Two minutes that make the case: `python -m experiments.quickstart`.

scikit-learn's 1,797 digits, which every installation has, become 20,000 images by small random
rotations and shifts. The same eight configurations of a LeNet are tried on all of them, on all of
them with Hyperband, on random 5% subsets and on GRAD-MATCH's 5% subsets with and without ASHA. Each
search's winner is retrained on everything and tested on digits that none has seen. Nothing is
downloaded.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import tyro
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


def draw(found: pd.DataFrame, path: Path) -> None:
    """Seconds from zero, and test accuracy on an axis that begins where guessing is."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, name in ((left, "seconds"), (right, "accuracy")):
        found[name].plot.barh(ax=axes, color="#1f4e79")
        axes.bar_label(axes.containers[0], fmt="{:.1f}", padding=3)
        axes.margins(x=0.15)
    left.set(xlabel="seconds of the search, without compilation", ylabel="")
    right.set(xlabel="test accuracy after retraining (%)", xlim=(0, 115), xticks=range(0, 101, 20))
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(str(path))


def main(
    out: Path = Path("runs/quickstart"), seed: int = 0, trials: int = 8, images: int = 20_000
) -> None:
    """Tunes LeNet on subsets and on everything, and draws what it took into `out`."""
    digits = jdss.load_dataset("digits")
    first, held_out = jdss.stratified_split(digits.labels, 0.1, seed=seed)
    keys = jax.random.split(jax.random.key(seed), 3)
    parts = ((first, images), (held_out, images // 10))
    train, validation = (
        enlarged(digits.images[part], digits.labels[part], size, key)
        for (part, size), key in zip(parts, keys[:2], strict=True)
    )
    test = enlarged(digits.test_images, digits.test_labels, len(digits.test_labels), keys[2])
    space = jdss.default_space(epochs=(6, 8), batch_sizes=(64,))
    rows = {}
    for name, (selection, pruner) in SEARCHES.items():
        result = jdss.tune(
            jdss.models.LeNet(num_classes=10),
            train,
            selection=selection,
            trials=trials,
            validation=validation,
            test=test,
            # The sampler draws at random by the seed alone: the same for all of them.
            search=jdss.Search(space=space, sampler="random", pruner=pruner),
            seed=seed,
        )
        assert result.retraining is not None
        # Without compilation, which the first search pays for all.
        ledgers = pd.DataFrame([trial["ledger"]["seconds"] for trial in result.trials])
        seconds = ledgers.drop(columns="compiling").sum().sum()
        values = [trial["hyperparameters"] for trial in result.trials]
        winner = values.index(result.best_hyperparameters)
        accuracy = 100 * (result.retraining.test_accuracy or 0.0)
        rows[name] = {"seconds": seconds, "configuration": winner, "accuracy": accuracy}
        print(
            f"{name:>21}: {seconds:6.1f} s, configuration {winner:2}, "
            f"{accuracy:.1f}% on the test set after retraining"
        )
    found = pd.DataFrame(rows).T
    draw(found, out / "quickstart.png")
    ours, theirs = found.iloc[0], found.iloc[-1]
    same = "the same" if ours["configuration"] == theirs["configuration"] else "another"
    print(
        f"\nGRAD-MATCH with ASHA found {same} configuration "
        f"{theirs['seconds'] / ours['seconds']:.0f} times faster ({ours['accuracy']:.1f}% and "
        f"{theirs['accuracy']:.1f}% on the test set). On a machine that does other work, too, "
        "seconds say little.\n"
        f"The figure is in {out / 'quickstart.png'}."
    )


if __name__ == "__main__":
    tyro.cli(main)
