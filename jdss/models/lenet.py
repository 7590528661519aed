"""LeNet, the small network of the MNIST experiments."""

from functools import partial

import flax.linen as nn
import jax

from jdss.models.convolution import conv_general_dilated, max_pool


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
        """The logits of images ``[b, h, w, channels]``, at least 12 × 12.

        `train` has no effect on values: in training, pooling apart has the faster gradient.
        """
        # Pooling before ReLU gives the same values as after it, with a quarter of the work.
        convolve = partial(conv_general_dilated, pooled=not train)
        pool = max_pool if train else lambda x: x
        x = images
        for features, padding in ((6, "SAME"), (16, "VALID")):
            layer = nn.Conv(features, (5, 5), padding=padding, conv_general_dilated=convolve)
            x = nn.relu(pool(layer(x)))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(120)(x))
        x = nn.relu(nn.Dense(84)(x))
        return nn.Dense(self.num_classes)(x)
