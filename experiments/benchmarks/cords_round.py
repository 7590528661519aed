"""CORDS's own strategies on the same network: its PyTorch twin, with the same weights and data."""

import logging
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.benchmarks.peers import cords_module, import_peer
from experiments.benchmarks.problems import Trained
from jdss.data.examples import Examples
from jdss.training.forward import compute_last_layer

_BATCH = 128  # Of the loaders through which CORDS reads the examples; as in training.
_STRATEGIES = {
    "grad_match": ("gradmatchstrategy", "GradMatchStrategy"),
    "glister": ("glisterstrategy", "GLISTERStrategy"),
    "craig": ("craigstrategy", "CRAIGStrategy"),
}


def twin(trained: Trained) -> Any:
    """LeNet as a `torch.nn.Module` of CORDS's protocol, with the weights of the trained one."""
    torch = import_peer("torch", "torch")
    functional = torch.nn.functional
    parameters = jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf)), trained.state.params)
    names = sorted(parameters)  # Conv_0, Conv_1, Dense_0, Dense_1, Dense_2

    class Twin(torch.nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            for name in names:
                kernel, bias = parameters[name]["kernel"], parameters[name]["bias"]
                axes = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)
                self.register_parameter(
                    f"{name}_kernel", torch.nn.Parameter(kernel.permute(axes).contiguous())
                )
                self.register_parameter(f"{name}_bias", torch.nn.Parameter(bias))

        def forward(self, images: Any, last: bool = False, freeze: bool = False) -> Any:
            def features() -> Any:
                x = images
                for name, padding in (("Conv_0", 2), ("Conv_1", 0)):
                    x = functional.conv2d(x, *self.layer(name), padding=padding)
                    x = functional.relu(functional.max_pool2d(x, 2))
                x = x.permute(0, 2, 3, 1).flatten(1)  # Channels last, as in Flax.
                for name in ("Dense_0", "Dense_1"):
                    x = functional.relu(functional.linear(x, *self.layer(name)))
                return x

            with torch.set_grad_enabled(not freeze):
                hidden = features()
            logits = functional.linear(hidden, *self.layer("Dense_2"))
            return (logits, hidden) if last else logits

        def layer(self, name: str) -> tuple[Any, Any]:
            return getattr(self, f"{name}_kernel"), getattr(self, f"{name}_bias")

        def get_embedding_dim(self) -> int:
            return 84

    return Twin()


def loaders(trained: Trained, label: int | None = None) -> tuple[Any, Any]:
    """Loaders of the training examples, all or those of one class, and of the validation set."""
    torch = import_peer("torch", "torch")

    def loader(indices: np.ndarray) -> Any:
        data = torch.utils.data.TensorDataset(*tensors(trained.examples, indices))
        return torch.utils.data.DataLoader(data, batch_size=_BATCH, shuffle=False)

    train = trained.train if label is None else trained.train[trained.labels == label]
    return loader(train), loader(trained.validation)


def tensors(examples: Examples, indices: np.ndarray) -> tuple[Any, Any]:
    """Some examples as PyTorch has them: images normalised, channels first, and labels."""
    torch = import_peer("torch", "torch")
    images = np.asarray(examples.normalization(examples.inputs[indices]))
    labels = np.asarray(examples.labels[indices], np.int64)
    return torch.tensor(images.transpose(0, 3, 1, 2).copy()), torch.tensor(labels)


def check_twin(trained: Trained, model: Any) -> None:
    """Raises AssertionError unless both networks have the same logits."""
    torch = import_peer("torch", "torch")
    some = trained.validation[:64]
    with torch.no_grad():
        logits = model(tensors(trained.examples, some)[0]).numpy()
    ours = compute_last_layer(trained.state, trained.examples, some).logits
    np.testing.assert_allclose(logits, ours, rtol=1e-3, atol=1e-3)


def round_of(
    strategy: str, trained: Trained, budget: int, data: tuple[Any, Any], **options: Any
) -> Callable[[], Any]:
    """One selection of CORDS's, gradients included; `options` are its strategy's own."""
    selector = make_selector(strategy, trained, data, **options)
    return lambda: selector.select(budget, selector.model.state_dict())


def make_selector(
    strategy: str,
    trained: Trained,
    data: tuple[Any, Any],
    *,
    device: str = "cpu",
    **options: Any,
) -> Any:
    """One of CORDS's strategies over the twin of the trained network.

    On the device "cpu" its GRAD-MATCH has a solver of its own; on any other name, such as "cpu:0"
    for the same device, it has that of a GPU.
    """
    torch = import_peer("torch", "torch")
    file, name = _STRATEGIES[strategy]
    make = getattr(cords_module(f"SL.{file}"), name)
    model = twin(trained)
    check_twin(trained, model)
    # It asks for pinned memory, which only matters with a GPU.
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    logger = logging.getLogger("cords")
    logger.setLevel(logging.ERROR)
    return make(
        *data,
        model,
        torch.nn.CrossEntropyLoss(reduction="none"),
        device=device,
        num_classes=trained.num_classes,
        logger=logger,
        **options,
    )


def craig_of_one_class(trained: Trained, label: int, budget: int) -> Callable[[], Any]:
    """What CORDS's CRAIG does for each class in turn, on last-layer gradients, for one class."""
    data = loaders(trained, label)
    options: dict[str, Any] = {
        "linear_layer": True,
        "if_convex": False,
        "selection_type": "PerClass",
    }
    selector = make_selector("craig", trained, data, **options)
    apricot = import_peer("apricot", "apricot-select")

    def run() -> Any:
        everyone = np.arange(len(data[0].dataset))
        selector.compute_score(selector.model.state_dict(), everyone)
        greedy = apricot.FacilityLocationSelection(
            budget, random_state=0, metric="precomputed", optimizer="lazy"
        )
        chosen = np.argmax(greedy.fit_transform(selector.dist_mat), axis=1)
        return selector.compute_gamma(list(chosen))

    return run
