"""LeNet."""

import flax.linen as nn
import jax


class LeNet(nn.Module):
    """The classic convolutional network for digits.

    Attributes:
        num_classes: The number of logits, ``c``.
    """

    num_classes: int = 10

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Logits ``[b, c]`` of float images ``[b, h, w, channels]``."""
        del train
        x = nn.relu(nn.Conv(6, (5, 5), padding="SAME")(images))
        x = _pool(x)
        x = nn.relu(nn.Conv(16, (5, 5), padding="VALID")(x))
        x = _pool(x)
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(120)(x))
        x = nn.relu(nn.Dense(84)(x))
        return nn.Dense(self.num_classes)(x)


def _pool(x: jax.Array) -> jax.Array:
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))
