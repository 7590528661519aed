"""Convolutions that stay fast inside compiled loops, also on the CPU.

Inside of loops, XLA's convolutions on the CPU are 5 to 40 times slower than outside of them
(https://github.com/jax-ml/jax/issues/12868). Matrix products are not, so here a convolution becomes
one: *patches × matrix*.

The textbook way, "im2col", copies the kh·kw inputs of every output into a row, and multiplies the
rows by the flattened kernel; with few output channels, copying takes the time. So a row here is the
patch that a small *block* of neighbouring outputs depends on, and the matrix holds one shifted copy
of the kernel for each output of the block, with zeros around it:

    block 1 × 1 (im2col)       patch  5 × 5    25 inputs copied an output       6 columns
    block 2 × 4                patch  6 × 8     6 inputs copied an output      48 columns

With many input channels, only the kw inputs along the width are gathered, and the convolution is a
sum over the kh rows of the kernel of such patches × its row. Where max-pooling follows, it is done
inside of the blocks, before their outputs are put where they belong in the image.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

# A matrix with fewer columns than this leaves the CPU's vector units idle.
_MIN_COLUMNS = 48
_BLOCKS = ((1, 1), (1, 2), (2, 2), (2, 4), (4, 4))

# From so many input channels on, a sum over the rows of the kernel beats one product.
_MANY_CHANNELS = 32

_Pads = Sequence[tuple[int, int]]


class _Way(NamedTuple):
    """How a convolution is to be computed, by whichever method; static."""

    strides: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    outputs: tuple[int, ...]  # rows and columns, before pooling
    precision: Any
    pooled: bool


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | _Pads,
    *,
    pooled: bool = False,
    **more: Any,
) -> jax.Array:
    """`lax.conv_general_dilated`, as patches × matrix where JAX computes on the CPU.

    A drop-in for `flax.linen.Conv` of images, with the same values and gradients, up to rounding.
    Other backends, dilation and groups get `lax.conv_general_dilated` itself. Where it is `pooled`,
    `max_pool` follows: before a bias that is the same over the image, to the same bits as after it.
    """
    size, kernel_size, pads = lhs.shape[1:3], rhs.shape[:2], padding
    if isinstance(pads, str):
        pads = lax.padtype_to_pads(size, kernel_size, window_strides, pads)
    ways = zip(size, kernel_size, pads, window_strides, strict=True)
    outputs = tuple((n + sum(pad) - k) // stride + 1 for n, k, pad, stride in ways)
    dilations = *(more.get("lhs_dilation") or ()), *(more.get("rhs_dilation") or ())
    is_plain = max(*dilations, more.get("feature_group_count", 1), 1) == 1
    # Asked here, and not by `lax.platform_dependent`, which traces both: a ResNet-50 has 53 of
    # them. A kernel that does not fit is left to the library, which has the words for it.
    if jax.default_backend() != "cpu" or not is_plain or not lhs.size or min(outputs) < 1:
        convolved = lax.conv_general_dilated(lhs, rhs, window_strides, padding, **more)
        return max_pool(convolved) if pooled else convolved
    compute = _rows_times_matrices if lhs.shape[3] >= _MANY_CHANNELS else _patches_times_matrix
    way = _Way(
        strides=tuple(window_strides),
        pads=tuple((low, high) for low, high in pads),
        outputs=outputs,
        precision=more.get("precision"),
        pooled=pooled,
    )
    return compute(way, lhs, rhs)  # traced once for all convolutions of the same shapes


def max_pool(x: jax.Array) -> jax.Array:
    """`flax.linen.max_pool` of 2 × 2 windows: ``[b, h, w, c]`` to ``[b, h // 2, w // 2, c]``.

    Its gradient is plain arithmetic, where that of `nn.max_pool` is a scatter, slow on CPUs. Equal
    maxima share it, where `nn.max_pool` gives it all to the first.
    """
    b, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2]
    return x.reshape(b, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))


def _padded(images: jax.Array, pads: _Pads) -> jax.Array:
    """Zeros around the images; where a number is negative, they are cropped."""
    around = ((0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0))
    return lax.pad(images, jnp.zeros((), images.dtype), around)


@partial(jax.jit, static_argnames="way")
def _rows_times_matrices(way: _Way, images: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution ``[b, rows, columns, features]``, one row of the kernel after another."""
    kh, kw, c, features = kernel.shape
    down, right = way.strides
    height, width = ((n - 1) * s + 1 for n, s in zip(way.outputs, way.strides, strict=True))
    images = _padded(images, way.pads)

    # What each output depends on along the width, [b, h, columns, kw·c].
    runs = jnp.concatenate([images[:, :, j : j + width : right] for j in range(kw)], axis=-1)

    # A sum of half-precision products is rounded once, at its end.
    wide = jnp.promote_types(images.dtype, jnp.float32)
    total: Any = 0
    for i in range(kh):
        row = runs[:, i : i + height : down].reshape(-1, kw * c)
        matrix = kernel[i].reshape(kw * c, features)
        total += jnp.matmul(row, matrix, precision=way.precision, preferred_element_type=wide)
    convolved = total.astype(images.dtype).reshape(len(images), *way.outputs, features)
    return max_pool(convolved) if way.pooled else convolved


@partial(jax.jit, static_argnames="way")
def _patches_times_matrix(way: _Way, images: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution ``[b, rows, columns, features]``, computed, and pooled, block by block."""
    features = kernel.shape[-1]
    rows, columns = way.outputs
    block = _block(way.outputs, kernel.shape[:2], features)
    blocks = math.ceil(rows / block[0]), math.ceil(columns / block[1])

    patches = _patches(images, kernel.shape[:2], way, block, blocks)
    kernels = _shifted_kernels(kernel, way.strides, block)
    products = jnp.matmul(patches, kernels, precision=way.precision)

    # From blocks side by side to an image; what the last blocks computed beyond it is cut off.
    products = products.reshape(-1, *block, features)
    in_blocks = way.pooled and not (block[0] % 2 or block[1] % 2)
    if in_blocks:
        products = products.reshape(-1, block[0] // 2, 2, block[1] // 2, 2, features)
        # Maxima of two, which XLA compiles into faster code than a reduction over axes of two.
        products = jnp.maximum(products[:, :, 0], products[:, :, 1])
        products = jnp.maximum(products[:, :, :, 0], products[:, :, :, 1])
        block, rows, columns = (block[0] // 2, block[1] // 2), rows // 2, columns // 2
    products = products.reshape(-1, *blocks, *block, features).transpose(0, 1, 3, 2, 4, 5)
    image = products.reshape(-1, blocks[0] * block[0], blocks[1] * block[1], features)
    image = image[:, :rows, :columns]
    return max_pool(image) if way.pooled and not in_blocks else image


def _block(outputs: Sequence[int], kernel_size: Sequence[int], features: int) -> tuple[int, ...]:
    """The smallest block that gives the matrix enough columns."""
    enough = (block for block in _BLOCKS if math.prod(block) * features >= _MIN_COLUMNS)
    block = next(enough, _BLOCKS[-1])
    # Where the kernel has width one, neighbours share no input: a block would add only zeros.
    limits = (n if k > 1 else 1 for n, k in zip(outputs, kernel_size, strict=True))
    return tuple(map(min, block, limits))


def _patches(
    images: jax.Array,
    kernel_size: Sequence[int],
    way: _Way,
    block: Sequence[int],
    blocks: Sequence[int],
) -> jax.Array:
    """What each block depends on: ``[b·blocks, ph·pw·c]``, for patches of ph × pw.

    Neighbouring patches are one step apart and overlap. The image is cut into pieces of one step,
    and a patch is put together from slices of these, first along the width, then along the height:
    long runs of numbers are copied, and the gradient by the images is a sum of few large slices.
    """
    b, h, w, c = images.shape
    patch = [(n - 1) * s + k for n, s, k in zip(block, way.strides, kernel_size, strict=True)]
    step = [n * s for n, s in zip(block, way.strides, strict=True)]
    pieces = [n + math.ceil(p / s) - 1 for n, p, s in zip(blocks, patch, step, strict=True)]
    whole = zip(way.pads, pieces, step, (h, w), strict=True)  # in pieces
    images = _padded(images, [(low, n * s - low - size) for (low, _), n, s, size in whole])

    # One slice, not two in a row: each would become a pad of its own in the gradient.
    x = images.reshape(b * pieces[0] * step[0], pieces[1], step[1] * c)
    runs = []
    for start in range(0, patch[1], step[1]):
        piece, length = start // step[1], min(step[1], patch[1] - start) * c
        runs.append(x[:, piece : piece + blocks[1], :length])
    x = jnp.concatenate(runs, axis=-1)

    x = x.reshape(b, pieces[0], step[0], blocks[1], patch[1] * c)
    runs = []
    for start in range(patch[0]):
        piece, row = divmod(start, step[0])
        runs.append(x[:, piece : piece + blocks[0], row])
    return jnp.concatenate(runs, axis=-1).reshape(-1, patch[0] * patch[1] * c)


def _shifted_kernels(kernel: jax.Array, strides: Sequence[int], block: Sequence[int]) -> jax.Array:
    """The matrix ``[ph·pw·c, block·features]``: a copy of the kernel for each output of a block."""
    down, right = ((n - 1) * s for n, s in zip(block, strides, strict=True))
    copies = [
        jnp.pad(kernel, ((row, down - row), (column, right - column), (0, 0), (0, 0)))
        for row in range(0, down + 1, strides[0])
        for column in range(0, right + 1, strides[1])
    ]
    return jnp.stack(copies, axis=-2).reshape(-1, len(copies) * kernel.shape[-1])
