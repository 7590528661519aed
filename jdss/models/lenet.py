"""LeNet, the small network of the MNIST experiments."""

from functools import partial

import flax.linen as nn
import jax

from jdss.models.convolution import conv_general_dilated

_Conv = partial(nn.Conv, conv_general_dilated=conv_general_dilated)


class LeNet(nn.Module):
    """Two convolutions and three dense layers, after LeNet-5.

    ReLU and max-pooling stand in for the original's sigmoids and trained averages, as is usual
    today; all else, the "SAME" padding that makes 32 × 32 of 28 × 28 included, is as in LeCun,
    Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition" (1998).
    On MNIST it has 61,706 parameters.

    Attributes:
        num_classes: The number of logits, ``c``.

    Example:
        >>> import jax.numpy as jnp
        >>> images = jnp.ones((2, 28, 28, 1))
        >>> init = jax.jit(LeNet().init_with_output)
        >>> logits, variables = init(jax.random.key(0), images)
        >>> logits.shape, sum(leaf.size for leaf in jax.tree.leaves(variables))
        ((2, 10), 61706)
    """

    num_classes: int = 10

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Computes the logits, the unchanged output of the last dense layer.

        Args:
            images: Floats, ``[b, h, w, channels]``, at least 12 × 12.
            train: Has no effect; other models behave differently in training.

        Returns:
            Logits, ``[b, num_classes]``.
        """
        del train
        # Pooling before ReLU gives the same values as after it, with a quarter of the work.
        x = nn.relu(_max_pool(_Conv(6, (5, 5), padding="SAME")(images)))
        x = nn.relu(_max_pool(_Conv(16, (5, 5), padding="VALID")(x)))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(120)(x))
        x = nn.relu(nn.Dense(84)(x))
        return nn.Dense(self.num_classes)(x)


def _max_pool(x: jax.Array) -> jax.Array:
    """`nn.max_pool` of 2 × 2 windows: ``[b, h, w, c]`` to ``[b, h // 2, w // 2, c]``.

    Windows do not overlap, so that reshaping puts each on axes of its own; the gradient is then
    plain arithmetic, where that of `nn.max_pool` is a scatter, slow on CPUs. Equal maxima share
    the gradient, where `nn.max_pool` gives it all to the first: another subgradient, of equal sum.
    """
    b, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2]
    return x.reshape(b, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))
