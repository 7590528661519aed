"""Convolutions that stay fast inside compiled loops, also on the CPU.

XLA compiles a convolution on the CPU into one call of a fast library, but only outside of
loops; inside `lax.scan`, `lax.fori_loop` and the like it falls back to code that is 5 to 40 times
slower (https://github.com/jax-ml/jax/issues/12868). Matrix products do not suffer from this,
so here a convolution becomes one: *patches × matrix*.

The textbook way, "im2col", copies the kh·kw inputs of every output into a row, and multiplies
the rows by the flattened kernel. With few output channels that is a bad bargain: a 5 × 5 kernel
copies every input 25 times to feed a matrix of only six columns. So a row here is the patch
that a small *block* of neighbouring outputs depends on, and the matrix holds one shifted copy
of the kernel for each output of the block, with zeros around it:

    block 1 × 1 (im2col)       patch  5 × 5    25 inputs copied an output       6 columns
    block 2 × 4                patch  6 × 8     6 inputs copied an output      48 columns

The zeros cost 1.9 times the multiplications, and the whole is still much faster: copying, not
multiplying, is what takes the time.

With many input channels, only the kw inputs along the width are gathered, and the convolution is a
sum over the kh rows of the kernel of such patches × its row: a third of the copying, and products
that are large enough.

Where max-pooling follows, it is done inside of the blocks, before their outputs are put where they
belong in the image: a quarter of the numbers is left to be moved, and a forward pass of LeNet takes
half the time.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# A matrix with fewer columns than this leaves the CPU's vector units idle.
_MIN_COLUMNS = 48
_BLOCKS = ((1, 1), (1, 2), (2, 2), (2, 4), (4, 4))

# From so many input channels on, a sum over the rows of the kernel beats one product.
_MANY_CHANNELS = 32

_Pads = Sequence[tuple[int, int]]


def conv_general_dilated(
    lhs: jax.Array, rhs: jax.Array, window_strides: Sequence[int], padding: str | _Pads, **more: Any
) -> jax.Array:
    """`lax.conv_general_dilated`, as patches × matrix where it is lowered for the CPU.

    A drop-in for `flax.linen.Conv`, with the same values and gradients up to rounding. Other
    backends, and anything but a plain two-dimensional convolution of channels-last images
    (dilation, feature groups, other layouts), get `lax.conv_general_dilated` itself.

    Args:
        lhs: Images ``[b, h, w, c]``.
        rhs: The kernel ``[kh, kw, c, features]``.
        window_strides: Strides along h and w.
        padding: ``"SAME"``, ``"VALID"``, or ``(low, high)`` for h and w.
        **more: Anything else that `lax.conv_general_dilated` takes, by name.

    Returns:
        The convolved images, ``[b, rows, columns, features]``.

    Example:
        >>> import flax.linen as nn
        >>> layer = nn.Conv(6, (5, 5), conv_general_dilated=conv_general_dilated)
        >>> images = jnp.ones((2, 28, 28, 1))
        >>> layer.init_with_output(jax.random.key(0), images)[0].shape
        (2, 28, 28, 6)
    """
    return _convolve(False, lhs, rhs, window_strides, padding, more)


def max_pooled_convolution(
    lhs: jax.Array, rhs: jax.Array, window_strides: Sequence[int], padding: str | _Pads, **more: Any
) -> jax.Array:
    """`conv_general_dilated` and `max_pool` in one, for channels-last images.

    For a layer whose bias is the same over the image, as that of `flax.linen.Conv`: the largest of
    four numbers, and then the bias, is bit for bit the largest of the four with it.

    Returns:
        The convolved and pooled images, ``[b, rows // 2, columns // 2, features]``.

    Example:
        >>> import flax.linen as nn
        >>> layer = nn.Conv(6, (5, 5), conv_general_dilated=max_pooled_convolution)
        >>> images = jnp.ones((2, 28, 28, 1))
        >>> layer.init_with_output(jax.random.key(0), images)[0].shape
        (2, 14, 14, 6)
    """
    return _convolve(True, lhs, rhs, window_strides, padding, more)


def max_pool(x: jax.Array) -> jax.Array:
    """`flax.linen.max_pool` of 2 × 2 windows: ``[b, h, w, c]`` to ``[b, h // 2, w // 2, c]``.

    Windows do not overlap, so that reshaping puts each on axes of its own; the gradient is then
    plain arithmetic, where that of `nn.max_pool` is a scatter, slow on CPUs. Equal maxima share
    the gradient, where `nn.max_pool` gives it all to the first: another subgradient, of equal sum.
    """
    b, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2]
    return x.reshape(b, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))


def _convolve(
    pooled: bool,
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | _Pads,
    more: Mapping[str, Any],
) -> jax.Array:
    """The convolution, with max-pooling or without."""
    after: Callable[[jax.Array], jax.Array] = max_pool if pooled else lambda x: x
    precision = more.get("precision")

    def library(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return after(lax.conv_general_dilated(lhs, rhs, window_strides, padding, **more))

    if not _is_plain(lhs, rhs, more):
        return library(lhs, rhs)
    kernel_size, strides = rhs.shape[:2], tuple(window_strides)
    pads = padding
    if isinstance(pads, str):
        pads = lax.padtype_to_pads(lhs.shape[1:3], kernel_size, strides, pads)
    # Of whatever shape: the library has the words for a kernel that does not fit.
    if any(n + sum(pad) < k for n, pad, k in zip(lhs.shape[1:3], pads, kernel_size, strict=True)):
        return library(lhs, rhs)

    def product(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        if lhs.shape[3] >= _MANY_CHANNELS:
            return after(_rows_times_matrices(lhs, rhs, strides, pads, precision))
        return _patches_times_matrix(lhs, rhs, strides, pads, precision, pooled)

    # Decided when the program is lowered, so that no program contains both.
    return lax.platform_dependent(lhs, rhs, cpu=product, default=library)


def _is_plain(lhs: jax.Array, rhs: jax.Array, more: Mapping[str, Any]) -> bool:
    """Whether it is a two-dimensional convolution of channels-last images, and nothing else."""
    others = {**more}
    others.pop("precision", None)
    dilations = *(others.pop("lhs_dilation", None) or ()), *(others.pop("rhs_dilation", None) or ())
    layout, groups = others.pop("dimension_numbers", None), others.pop("feature_group_count", 1)
    if lhs.ndim != 4 or lhs.size == 0 or not jnp.issubdtype(lhs.dtype, jnp.floating):
        return False
    if others or groups != 1 or any(dilation != 1 for dilation in dilations):
        return False
    given = lax.conv_dimension_numbers(lhs.shape, rhs.shape, layout)
    return given == lax.conv_dimension_numbers(lhs.shape, rhs.shape, ("NHWC", "HWIO", "NHWC"))


def _rows_times_matrices(
    images: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, ...],
    pads: _Pads,
    precision: Any,
) -> jax.Array:
    """The convolution ``[b, rows, columns, features]``, one row of the kernel after another."""
    b, h, w, c = images.shape
    kh, kw, _, features = kernel.shape
    rows, columns = (
        (n + sum(pad) - k) // stride + 1
        for n, pad, k, stride in zip((h, w), pads, (kh, kw), strides, strict=True)
    )
    around = ((0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0))
    images = lax.pad(images, jnp.zeros((), images.dtype), around)

    # What each output depends on along the width, [b, h, columns, kw·c].
    width, height = (columns - 1) * strides[1] + 1, (rows - 1) * strides[0] + 1
    along = [images[:, :, j : j + width : strides[1]] for j in range(kw)]
    runs = jnp.concatenate(along, axis=-1)

    # A sum of half-precision products is rounded once, at its end.
    wide = jnp.promote_types(images.dtype, jnp.float32)
    total: Any = 0
    for i in range(kh):
        row = runs[:, i : i + height : strides[0]].reshape(-1, kw * c)
        matrix = kernel[i].reshape(kw * c, features)
        total += jnp.matmul(row, matrix, precision=precision, preferred_element_type=wide)
    return total.astype(images.dtype).reshape(b, rows, columns, features)


def _patches_times_matrix(
    images: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, ...],
    pads: _Pads,
    precision: Any,
    pooled: bool,
) -> jax.Array:
    """The convolution ``[b, rows, columns, features]``, computed, and pooled, block by block."""
    b = images.shape[0]
    *kernel_size, _, features = kernel.shape
    rows, columns = (
        (n + sum(pad) - k) // stride + 1
        for n, pad, k, stride in zip(images.shape[1:3], pads, kernel_size, strides, strict=True)
    )
    block = _block((rows, columns), kernel_size, features)
    blocks = math.ceil(rows / block[0]), math.ceil(columns / block[1])

    patches = _patches(images, kernel_size, strides, pads, block, blocks)
    products = jnp.matmul(patches, _shifted_kernels(kernel, strides, block), precision=precision)

    # From blocks side by side to an image; what the last blocks computed beyond it is cut off.
    products = products.reshape(-1, *block, features)
    in_blocks = pooled and not (block[0] % 2 or block[1] % 2)
    if in_blocks:
        products = products.reshape(-1, block[0] // 2, 2, block[1] // 2, 2, features)
        # Maxima of two, which XLA compiles into faster code than a reduction over axes of two.
        products = jnp.maximum(products[:, :, 0], products[:, :, 1])
        products = jnp.maximum(products[:, :, :, 0], products[:, :, :, 1])
        block, rows, columns = (block[0] // 2, block[1] // 2), rows // 2, columns // 2
    products = products.reshape(b, *blocks, *block, features).transpose(0, 1, 3, 2, 4, 5)
    image = products.reshape(b, blocks[0] * block[0], blocks[1] * block[1], features)
    image = image[:, :rows, :columns]
    return max_pool(image) if pooled and not in_blocks else image


def _block(outputs: tuple[int, int], kernel_size: Sequence[int], features: int) -> tuple[int, int]:
    """The smallest block that gives the matrix enough columns."""
    enough = (b for b in _BLOCKS if math.prod(b) * features >= _MIN_COLUMNS)
    block = next(enough, _BLOCKS[-1])
    # Where the kernel has width one, neighbours share no input: a block would add only zeros.
    limits = (n if k > 1 else 1 for n, k in zip(outputs, kernel_size, strict=True))
    height, width = (min(size, limit) for size, limit in zip(block, limits, strict=True))
    return height, width


def _patches(
    images: jax.Array,
    kernel_size: Sequence[int],
    strides: Sequence[int],
    pads: _Pads,
    block: tuple[int, int],
    blocks: tuple[int, int],
) -> jax.Array:
    """What each block depends on: ``[b·blocks, ph·pw·c]``, for patches of ph × pw.

    Neighbouring patches are one step apart and overlap. The image is cut into pieces of one
    step, and a patch is put together from slices of the piece at its corner and the next ones:
    first along the width, then along the height. This copies long runs of numbers, and its
    transpose, the gradient by the images, is a sum of few large slices.
    """
    b, h, w, c = images.shape
    patch = [(n - 1) * s + k for n, s, k in zip(block, strides, kernel_size, strict=True)]
    step = [n * s for n, s in zip(block, strides, strict=True)]
    pieces = [n + math.ceil(p / s) - 1 for n, p, s in zip(blocks, patch, step, strict=True)]

    # Pads to a whole number of pieces. A negative number, here or from the caller, crops.
    config = [
        (low, n * s - low - size, 0)
        for (low, _), n, s, size in zip(pads, pieces, step, (h, w), strict=True)
    ]
    images = lax.pad(images, jnp.zeros((), images.dtype), ((0, 0, 0), *config, (0, 0, 0)))

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


def _shifted_kernels(
    kernel: jax.Array, strides: Sequence[int], block: tuple[int, int]
) -> jax.Array:
    """The matrix ``[ph·pw·c, block·features]``: a copy of the kernel for each output of a block."""
    features = kernel.shape[-1]
    room = [(n - 1) * s for n, s in zip(block, strides, strict=True)]
    copies = []
    for row in range(0, room[0] + 1, strides[0]):
        for column in range(0, room[1] + 1, strides[1]):
            around = ((row, room[0] - row), (column, room[1] - column), (0, 0), (0, 0))
            copies.append(jnp.pad(kernel, around))
    return jnp.stack(copies, axis=-2).reshape(-1, len(copies) * features)
