"""LeNet, and the convolution that it is made of, against Flax and XLA's own."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jdss.models import LeNet
from jdss.models.convolution import conv_general_dilated

CHANNELS_LAST = ("NHWC", "HWIO", "NHWC")
max_pooled_convolution = partial(conv_general_dilated, pooled=True)


class PlainLeNet(nn.Module):
    """LeNet from Flax's own layers with their defaults."""

    @nn.compact
    def __call__(self, x):
        for features, padding in ((6, "SAME"), (16, "VALID")):
            x = nn.relu(nn.Conv(features, (5, 5), padding=padding)(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape(len(x), -1)
        for features in (120, 84):
            x = nn.relu(nn.Dense(features)(x))
        return nn.Dense(10)(x)


def normal(*shape, seed=0, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def value_and_gradients(convolve, images, kernel):
    values, pullback = jax.vjp(convolve, images, kernel)
    return values, *pullback(normal(*values.shape, seed=3, dtype=values.dtype))


def lowered_text(platform, images, kernel, **options):
    """The program of a convolution and its gradients, traced and lowered for a platform."""
    options = {"dimension_numbers": CHANNELS_LAST, "padding": ((1, 1), (1, 1)), **options}
    convolve = partial(conv_general_dilated, window_strides=(1, 1), **options)
    backend = "cpu" if platform == "cpu" else "gpu"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(jax, "default_backend", lambda: backend)
        traced = jax.jit(partial(value_and_gradients, convolve)).trace(images, kernel)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(
    ("images", "kernel", "strides", "padding"),
    [
        ((3, 28, 28, 1), (5, 5, 1, 6), (1, 1), "SAME"),
        ((3, 14, 14, 6), (5, 5, 6, 16), (1, 1), "VALID"),
        ((2, 9, 11, 3), (3, 3, 3, 64), (1, 1), "SAME"),
        ((2, 9, 11, 16), (3, 3, 16, 16), (1, 1), "SAME_LOWER"),
        ((2, 8, 8, 16), (3, 3, 16, 32), (2, 2), "SAME"),
        ((2, 9, 7, 4), (3, 3, 4, 8), (2, 1), ((1, 1), (0, 2))),
        ((2, 8, 8, 16), (1, 1, 16, 32), (2, 2), "SAME"),
        ((2, 12, 12, 2), (1, 5, 2, 3), (1, 1), "SAME"),
        ((2, 19, 17, 3), (7, 7, 3, 5), (2, 2), ((3, 3), (3, 3))),
        ((2, 11, 13, 3), (2, 2, 3, 4), (3, 4), "VALID"),
        ((2, 5, 5, 2), (5, 5, 2, 3), (1, 1), "VALID"),
        ((6, 5, 6, 32), (3, 3, 32, 8), (1, 1), "SAME"),
        ((6, 9, 7, 32), (3, 2, 32, 5), (2, 3), ((1, 2), (-1, 1))),
        ((2, 6, 6, 32), (1, 1, 32, 3), (2, 2), "SAME"),
        ((2, 3, 3, 1), (5, 5, 1, 2), (1, 1), "VALID"),
        ((2, 9, 9, 2), (3, 3, 2, 3), (1, 1), ((-1, 2), (0, -2))),
    ],
)
def test_convolution_equals_xlas_in_value_and_gradients(images, kernel, strides, padding):
    images, kernel = normal(*images), normal(*kernel, seed=1)

    @jax.jit
    def both(images, kernel):
        return [
            value_and_gradients(
                partial(
                    convolve,
                    window_strides=strides,
                    padding=padding,
                    dimension_numbers=CHANNELS_LAST,
                ),
                images,
                kernel,
            )
            for convolve in (conv_general_dilated, lax.conv_general_dilated)
        ]

    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), *both(images, kernel))


@pytest.mark.parametrize(
    ("images", "kernel", "strides", "padding"),
    [
        ((3, 28, 28, 1), (5, 5, 1, 6), (1, 1), "SAME"),
        ((3, 15, 14, 6), (5, 5, 6, 16), (1, 1), "VALID"),  # an odd row over
        ((2, 9, 11, 3), (3, 3, 3, 64), (1, 1), "SAME"),  # so many columns that a block is one
        ((2, 19, 17, 3), (7, 7, 3, 5), (2, 2), ((3, 3), (3, 3))),
        ((2, 12, 12, 2), (1, 5, 2, 3), (1, 1), "SAME"),  # blocks of odd height
        ((2, 6, 7, 32), (3, 3, 32, 8), (1, 1), "SAME"),  # by the kernel's rows
        ((2, 3, 4, 1), (3, 3, 1, 2), (1, 1), "VALID"),  # one row: nothing to pool
    ],
)
def test_pooled_convolution_equals_flaxs_pooling_of_xlas_convolution(
    images, kernel, strides, padding
):
    images, kernel = normal(*images), normal(*kernel, seed=1)

    def plain(images, kernel, **options):
        convolved = lax.conv_general_dilated(images, kernel, **options)
        return nn.max_pool(convolved, (2, 2), strides=(2, 2))

    @jax.jit
    def both(images, kernel):
        options = {
            "window_strides": strides,
            "padding": padding,
            "dimension_numbers": CHANNELS_LAST,
        }
        return [
            value_and_gradients(partial(convolve, **options), images, kernel)
            for convolve in (max_pooled_convolution, plain)
        ]

    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), *both(images, kernel))


def test_pooled_convolutions_elsewhere_are_xlas_own():
    on_cpu, on_gpu = (
        lowered_text(platform, normal(2, 8, 8, 3), normal(3, 3, 3, 6), padding="SAME", pooled=True)
        for platform in ("cpu", "cuda")
    )
    assert on_cpu.count("stablehlo.convolution") == 0
    assert on_gpu.count("stablehlo.convolution") == 3  # one forward, two gradients


@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        ((3, 3, 4, 6), {"rhs_dilation": (2, 2)}),
        ((3, 3, 4, 6), {"lhs_dilation": (2, 1)}),
        ((3, 3, 2, 6), {"feature_group_count": 2}),
    ],
)
def test_unusual_convolutions_are_left_to_xla(kernel, options):
    text = lowered_text("cpu", normal(2, 9, 9, 4), normal(*kernel), **options)
    assert text.count("stablehlo.convolution") == 3  # one forward, two gradients


def test_products_on_the_cpu_and_convolutions_elsewhere_never_both():
    images, kernel = normal(2, 8, 8, 3), normal(3, 3, 3, 6)
    on_cpu, on_gpu = (lowered_text(platform, images, kernel) for platform in ("cpu", "cuda"))
    assert on_cpu.count("stablehlo.dot_general") == 3
    assert "stablehlo.convolution" not in on_cpu
    assert on_gpu.count("stablehlo.convolution") == 3
    assert "stablehlo.dot_general" not in on_gpu


def test_half_precision_stays_half():
    images = normal(2, 8, 8, 3, dtype=jnp.bfloat16)
    kernel = normal(3, 3, 3, 6, seed=1, dtype=jnp.bfloat16)
    got, want = (
        convolve(images, kernel, (1, 1), "SAME", dimension_numbers=CHANNELS_LAST)
        for convolve in (conv_general_dilated, lax.conv_general_dilated)
    )
    assert got.dtype == want.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(float), want.astype(float), rtol=0.02, atol=0.05)


def test_forward_mode_and_vmap_of_gradients():
    images, kernel = normal(3, 6, 6, 2), normal(3, 3, 2, 4, seed=1)

    def convolve(images, kernel):
        return conv_general_dilated(
            images, kernel, (1, 1), "VALID", dimension_numbers=CHANNELS_LAST
        )

    def loss(kernel, images):
        return jnp.sum(convolve(images, kernel) ** 2)

    @jax.jit
    def compute(images, kernel):
        # Linear in the images: the derivative along them is the convolution itself.
        values, tangents = jax.jvp(lambda x: convolve(x, kernel), (images,), (images,))
        each = jax.vmap(jax.grad(loss), in_axes=(None, 0))(kernel, images[:, None])
        return (tangents, each.sum(axis=0)), (values, jax.grad(loss)(kernel, images))

    got, want = compute(images, kernel)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-3), got, want)


@pytest.mark.parametrize(
    ("shape", "flat"), [((28, 28, 1), 400), ((16, 16, 1), 64), ((32, 32, 3), 576)]
)
def test_parameters_are_those_of_plain_layers(shape, flat):
    key, images = jax.random.key(0), jnp.zeros((1, *shape))
    params = jax.eval_shape(LeNet().init, key, images)
    assert params == jax.eval_shape(PlainLeNet().init, key, images)
    assert params["params"]["Conv_0"]["kernel"].shape == (5, 5, shape[-1], 6)
    assert params["params"]["Conv_1"]["kernel"].shape == (5, 5, 6, 16)
    assert params["params"]["Dense_0"]["kernel"].shape == (flat, 120)


def test_number_of_parameters_on_mnist():
    params = jax.eval_shape(LeNet().init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 61_706


def test_logits_are_the_same_in_training_and_after_it():
    images = normal(4, 30, 28, 1)
    variables = jax.jit(LeNet().init)(jax.random.key(0), images)
    in_training, after = (jax.jit(partial(LeNet().apply, train=t)) for t in (True, False))
    np.testing.assert_allclose(in_training(variables, images), after(variables, images), 1e-5)


def test_number_of_classes_is_the_number_of_logits():
    init = partial(LeNet(num_classes=7).init_with_output, train=True)
    logits, _ = jax.eval_shape(init, jax.random.key(0), jnp.zeros((3, 28, 28, 1)))
    assert logits.shape == (3, 7)


def test_logits_and_gradients_equal_those_of_plain_layers():
    # A blank margin, as around a digit, gives pooling many windows of equal maxima; the height
    # leaves the second pooling an odd row over.
    images = normal(4, 30, 28, 1).at[:, :8].set(0).at[:, :, :8].set(0)
    params = jax.jit(LeNet().init)(jax.random.key(0), images)
    params = jax.tree.map(lambda leaf: leaf + 0.01, params)  # lifts blank windows over the ReLU

    @jax.jit
    def both(params):
        def loss(params, model):
            logits = model(params, images)
            return jnp.sum(logits**2), logits

        return [
            jax.grad(partial(loss, model=model), has_aux=True)(params)
            for model in (LeNet().apply, partial(LeNet().apply, train=True), PlainLeNet().apply)
        ]

    evaluated, trained, plain = both(params)
    for found in (evaluated, trained):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3), found, plain)


def test_loop_of_traced_length_under_pmap_equals_single_steps():
    images = normal(4, 16, 16, 1)
    params = jax.jit(LeNet().init)(jax.random.key(0), images)

    def descend(params, images, steps):
        def step(_, params):
            gradients = jax.grad(lambda p: jnp.mean(LeNet().apply(p, images) ** 2))(params)
            return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients)

        return lax.fori_loop(0, steps, step, params)

    replicated = jax.tree.map(lambda leaf: leaf[None], (params, images))
    looped = jax.pmap(descend, in_axes=(0, 0, None))(*replicated, 2)
    one_step = jax.jit(descend)
    stepped = one_step(one_step(params, images, 1), images, 1)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[0], b, rtol=1e-4, atol=1e-5), looped, stepped
    )
