"""LeNet, the small network of the MNIST experiments."""

from functools import partial

import flax.linen as nn
import jax

from jdss.models.convolution import conv_general_dilated, max_pool


class LeNet(nn.Module):
    """Two convolutions and three dense layers; 61,706 parameters for MNIST.

    LeNet-5 of LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document
    recognition" (1998), with ReLU and max-pooling for its sigmoids and trained averages.

    Attributes:
        num_classes: The number of logits.

    Example:
        >>> import jax.numpy as jnp
        >>> images = jnp.ones((2, 28, 28, 1))
        >>> jax.eval_shape(LeNet().init_with_output, jax.random.key(0), images)[0].shape
        (2, 10)
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
