"""What an experiment of the paper is: its data, network and search space, at several scales."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jdss


@dataclass(frozen=True)
class Scale:
    """How much of the paper's experiment is run; None is all images."""

    images: int | None
    epochs: tuple[int, int]
    batch_sizes: tuple[int, ...]
    trials: int = 10
    width: int = 64

    def describe(self, images: int, *more: str) -> dict[str, Any]:
        """What result files say of it, of that many images at the paper's scale."""
        parts = [f"{self.images or images:,} of {images:,} training images", *more]
        if self.width != 64:
            parts.append(f"width {self.width} instead of 64")
        reduced = self.images is not None or self.width != 64
        return {"reduced": reduced, "description": ", ".join(parts)}

    @property
    def budget(self) -> str:
        return "{} to {} epochs".format(*self.epochs)


@dataclass(frozen=True)
class Recipe:
    """An experiment of the paper.

    Attributes:
      dataset: its name, and that of the recipe's module.
      network: the network's name, for a reader.
      model: of a width to the module, or to a function of what `space` draws.
      scales: by name.
      augmentation: of the images trained on.
      space: hyper-parameters beside those of the default space.
    """

    dataset: str
    network: str
    model: Callable[[int], Any]
    scales: Mapping[str, Scale]
    augmentation: str = "none"
    space: Mapping[str, Any] = field(default_factory=dict)

    def load(self, data_dir: str | None = None) -> jdss.Dataset:
        """All its images."""
        return jdss.load_dataset(self.dataset, data_dir=data_dir)
