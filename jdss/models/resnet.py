"""Residual networks for small images, of any depth and width.

He, Zhang, Ren and Sun, "Deep residual learning for image recognition" (CVPR 2016), in the form
that is usual for the 32 × 32 images of CIFAR: the first convolution is 3 × 3 with stride 1, and no
pooling follows it.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdss import _checks
from jdss.models.convolution import conv_general_dilated

_Conv = partial(
    nn.Conv,
    use_bias=False,  # BatchNorm, which follows, has one
    kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
    conv_general_dilated=conv_general_dilated,
)
_BatchNorm = partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)


class ResNet(nn.Module):
    """A residual network: stages of blocks, each stage of half the resolution and twice the width.

    Images ``[b, h, w, channels]`` become logits float32 ``[b, num_classes]``, the unchanged output
    of the last dense layer.

    Attributes:
        num_classes: The number of logits.
        width: Features of the first stage, a positive integer.
        repetitions: How many blocks each stage has, positive integers. A search may vary it, as
            the paper does; each value is another program, and compiles.
        bottleneck: Whether a block is 1 × 1, 3 × 3, 1 × 1 with four times the features at its
            end, or 3 × 3, 3 × 3.
        dtype: What the network computes in: `jnp.float32`, or `jnp.bfloat16`. Parameters,
            statistics of BatchNorm, the last mean and the logits are float32 in either case.

    Example:
        >>> model = ResNet(repetitions=(1, 1), width=4)
        >>> images = jnp.ones((2, 8, 8, 3))
        >>> logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
        >>> logits.shape, sorted(variables)
        ((2, 10), ['batch_stats', 'params'])
    """

    num_classes: int = 10
    width: int = 64
    repetitions: Sequence[int] = (2, 2, 2, 2)
    bottleneck: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """The logits; in training, BatchNorm takes the batch's statistics, and keeps averages."""
        width = _checks.check_positive_int("width", self.width)
        norm = partial(_BatchNorm, use_running_average=not train, dtype=self.dtype)
        block = _Bottleneck if self.bottleneck else _Basic
        if not self.repetitions:
            raise ValueError("repetitions must name at least one stage, got ()")

        x = _Conv(width, (3, 3), padding=1, dtype=self.dtype)(images)
        x = nn.relu(norm()(x))
        for stage, repetitions in enumerate(self.repetitions):
            for i in range(_checks.check_positive_int(f"repetitions[{stage}]", repetitions)):
                stride = 2 if stage and i == 0 else 1
                x = block(width * 2**stage, stride, self.dtype, norm)(x)
        x = x.mean(axis=(1, 2), dtype=jnp.float32)
        return nn.Dense(self.num_classes)(x)


class ResNet18(ResNet):
    """`ResNet` of four stages of two 3 × 3, 3 × 3 blocks; 11,173,962 parameters for CIFAR-10.

    Example:
        >>> model, images = ResNet18(num_classes=10, width=64), jnp.ones((2, 32, 32, 3))
        >>> jax.eval_shape(model.init_with_output, jax.random.key(0), images)[0].shape
        (2, 10)
    """


class ResNet50(ResNet):
    """`ResNet` of 3, 4, 6 and 3 bottlenecks; 23,705,252 parameters for CIFAR-100.

    Example:
        >>> def model(**stages: int) -> ResNet50:  # for `jdss.tune`: one integer a stage
        ...     return ResNet50(num_classes=100, repetitions=tuple(stages.values()))
        >>> model(stage_1=2, stage_2=3, stage_3=4, stage_4=2).repetitions
        (2, 3, 4, 2)
    """

    repetitions: Sequence[int] = (3, 4, 6, 3)
    bottleneck: bool = True


class _Basic(nn.Module):
    """Convolutions of 3 × 3 and 3 × 3, beside a shortcut."""

    features: int
    stride: int
    dtype: Any
    norm: Any

    def layers(self) -> tuple[tuple[int, int, int], ...]:
        """The size of each convolution's kernel, its features and its stride."""
        return (3, self.features, self.stride), (3, self.features, 1)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv, y = partial(_Conv, dtype=self.dtype), x
        for number, (size, features, stride) in enumerate(self.layers()):
            y = nn.relu(y) if number else y
            y = self.norm()(conv(features, (size, size), strides=stride, padding=size // 2)(y))
        if x.shape != y.shape:
            x = self.norm()(conv(y.shape[-1], (1, 1), strides=self.stride)(x))
        return nn.relu(x + y)


class _Bottleneck(_Basic):
    """1 × 1, 3 × 3, and 1 × 1 with four times the features."""

    def layers(self) -> tuple[tuple[int, int, int], ...]:
        return (1, self.features, 1), (3, self.features, self.stride), (1, 4 * self.features, 1)
