"""Data that is indexed example by example: `len(data)`, and `data[i]` an input and a label.

That is what PyTorch's and Hugging Face's data sets, Grain's sources and `MapDataset`s, and
`tensorflow_datasets`' data sources are. An example is a pair (input, label), or a mapping such as
{"image": …, "label": …}. Inputs may be whatever NumPy takes: arrays, tensors, images, numbers.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np

from jdss import _checks
from jdss.data.examples import as_arrays, stored_type

LABELS = ("label", "labels", "target", "targets", "y")
"""The names under which a label is looked for in an example that is a mapping."""

INPUTS = ("image", "img", "inputs", "input", "features", "x")
"""The names under which an input is looked for; where there is none, the others are inputs."""

_AT_ONCE = 1000  # examples that are asked for together


class Indexed(Protocol):
    """Examples that are asked for one by one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def is_sequence(data: Any) -> bool:
    """Whether data is indexed example by example, and is neither arrays nor a pair of them."""
    if isinstance(data, (tuple, str, bytes, Mapping, np.ndarray, jax.Array)):
        return False
    if (isinstance(data, list) and len(data) == 2) or hasattr(data, "dtypes"):
        return False  # a pair (inputs, labels), a table
    return hasattr(data, "__len__") and hasattr(data, "__getitem__")


@dataclass(frozen=True)
class SequenceRows:
    """The examples of a sequence, read when they are asked for.

    Attributes:
      source: the sequence.
      inputs: the name of the input in an example that is a mapping, or several; None looks for one
        of `INPUTS`.
      labels: the name of the label; None looks for one of `LABELS`.
    """

    source: Any
    inputs: str | tuple[str, ...] | None = None
    labels: str | None = None

    def __len__(self) -> int:
        return len(self.source)

    def read(self, indices: Any) -> tuple[Any, np.ndarray]:
        """Inputs [m, …] (an array, or a tuple or mapping of arrays) and labels [m, …].

        Raises:
          ValueError, TypeError: where an example is none, or not like the first, by its index.
        """
        indices = [int(index) for index in indices]
        examples = [self._split(*pair) for pair in zip(self._items(indices), indices, strict=True)]
        inputs, labels = zip(*examples, strict=True)
        _check_types(inputs, indices)
        return _stack(inputs, indices), _stack(labels, indices)

    def take(self, indices: Any) -> Any:
        """The inputs of some examples."""
        return self.read(indices)[0]

    def _items(self, indices: list[int]) -> Any:
        if hasattr(self.source, "__getitems__"):
            return self.source.__getitems__(indices)
        return [self.source[index] for index in indices]

    def _split(self, example: Any, index: int) -> tuple[Any, Any]:
        """An example's inputs and label, as arrays."""
        if isinstance(example, Mapping):
            return self._split_mapping(example)
        if isinstance(example, (tuple, list)) and len(example) == 2:
            return _as_tree(example[0]), _as_label(example[1])
        raise TypeError(
            "data must hold examples (input, label) or mappings such as {'image': …, 'label': …}, "
            f"but example {index} is a {type(example).__name__}"
        )

    def _split_mapping(self, example: Mapping[str, Any]) -> tuple[Any, Any]:
        label = self.labels or next((name for name in LABELS if name in example), None)
        chosen: Any = self.inputs or next((name for name in INPUTS if name in example), None)
        if chosen is None:
            rest = tuple(name for name in example if name != label)
            chosen = rest[0] if len(rest) == 1 else rest
        several = (chosen,) if isinstance(chosen, str) else chosen
        if label not in example or not several or any(name not in example for name in several):
            raise ValueError(
                f"data has examples with {', '.join(map(repr, example))}, in which no input and "
                "label were found: name them by jdss.read_sequence(data, inputs=…, labels=…)"
            )
        assert label is not None
        if isinstance(chosen, str):
            return _as_tree(example[chosen]), _as_label(example[label])
        return {name: _as_tree(example[name]) for name in chosen}, _as_label(example[label])


def read_sequence(
    source: Any, *, inputs: str | tuple[str, ...] | None = None, labels: str | None = None
) -> tuple[Any, np.ndarray]:
    """All examples of a sequence as arrays, in host memory.

    Args:
      source: anything with `len(source)` and `source[i]`, whose examples are (input, label), where
        an input may be a tuple or a mapping of several, or mappings.
      inputs: the name of the input in an example that is a mapping, or a tuple of several names;
        None looks for "image" and its like, or takes all but the label.
      labels: the name of the label; None looks for "label" and its like.

    Returns:
      Inputs [n, …], an array or a mapping or tuple of several, and labels [n, …].

    Raises:
      ValueError, TypeError: where there are no examples, or they are not alike, by their index.

    Example:
      >>> class Squares:
      ...     def __len__(self):
      ...         return 3
      ...     def __getitem__(self, index):
      ...         return {"image": np.full((2, 2), index**2), "label": index}
      >>> images, labels = read_sequence(Squares())
      >>> images.shape, labels
      ((3, 2, 2), array([0, 1, 2]))
    """
    rows = SequenceRows(source, inputs, labels)
    whole: Any = None
    for start, part in parts(rows):
        if whole is None:
            whole = jax.tree.map(
                lambda leaf: np.empty((len(rows), *leaf.shape[1:]), _roomy(leaf.dtype)), part
            )
        for into, new in zip(jax.tree.leaves(whole), jax.tree.leaves(part), strict=True):
            into[start : start + len(new)] = new
    return whole[0], whole[1]


def parts(rows: SequenceRows) -> Iterator[tuple[int, tuple[Any, np.ndarray]]]:
    """All examples in order, some at a time: where they begin, inputs and labels.

    Raises:
      ValueError: where there are none, or those of one part are not like those of the first.
    """
    size = _checks.check_positive_int("the number of examples in data", len(rows))
    kinds: Any = None
    for start in range(0, size, _AT_ONCE):
        part = rows.read(range(start, min(start + _AT_ONCE, size)))
        found = [(leaf.shape[1:], leaf.dtype) for leaf in jax.tree.leaves(part)]
        if kinds is None:
            kinds = found
            none_of_first = jax.tree.map(lambda leaf: np.empty(0, leaf.dtype), part[0])
        _check_types((none_of_first, part[0]), (0, start))
        for (shape, dtype), (first_shape, first) in zip(found, kinds, strict=True):
            if shape != first_shape or not _is_held(dtype, first):
                raise ValueError(
                    f"data must have examples of one shape and type; example 0 has {first}"
                    f"{list(first_shape)}, example {start} or one after it has {dtype}{list(shape)}"
                )
        yield start, part


def _as_tree(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _as_tree(held) for name, held in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_as_tree, value))
    return _as_array(value)


def _as_array(value: Any) -> np.ndarray:
    array = as_arrays(value)
    if array.ndim == 2 and hasattr(value, "getbands"):
        return array[..., None]  # an image of one channel, as all others have an axis for it
    return array


def _as_label(value: Any) -> np.ndarray:
    array = _as_array(value)
    return array.astype(object) if array.dtype.kind in "US" else array  # of any length


def _roomy(dtype: np.dtype) -> np.dtype:
    """A type that loses nothing of what is stored of any floats."""
    return np.result_type(dtype, np.float32) if dtype.kind == "f" else dtype


def _is_held(dtype: np.dtype, first: np.dtype) -> bool:
    """Whether numbers of a type may stand among those of the first part's type."""
    return dtype.kind == first.kind == "f" or np.can_cast(dtype, first, "safe")


def _check_types(trees: Any, indices: Sequence[int]) -> None:
    """Inputs are stored as one type each: among uint8, floats would count as of another scale."""
    kinds = [[stored_type(leaf.dtype) for leaf in jax.tree.leaves(tree)] for tree in trees]
    for place, kind in enumerate(kinds):
        if kind != kinds[0] and len(kind) == len(kinds[0]):
            first, other = (
                ", ".join(str(leaf.dtype) for leaf in jax.tree.leaves(trees[at]))
                for at in (0, place)
            )
            raise ValueError(
                f"data must have inputs of one type; example {indices[0]} has {first}, example "
                f"{indices[place]} has {other}"
            )


def _stack(trees: Any, indices: list[int]) -> Any:
    structure: Any = jax.tree.structure(trees[0])
    first = jax.tree.leaves(trees[0])
    for index, tree in zip(indices, trees, strict=True):
        leaves = jax.tree.leaves(tree)
        if jax.tree.structure(tree) != structure or any(
            leaf.shape != other.shape for leaf, other in zip(leaves, first, strict=True)
        ):
            raise ValueError(
                "data must have examples of one shape; example "
                f"{indices[0]} has {[leaf.shape for leaf in first]}, example {index} has "
                f"{[leaf.shape for leaf in leaves]}"
            )
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
