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


def images_like(shape, seed=0, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def value_and_gradients(convolution, images, kernel, cotangent_seed=3):
    values, pullback = jax.vjp(convolution, images, kernel)
    return values, *pullback(images_like(values.shape, cotangent_seed, values.dtype))


def assert_same_convolution(images, kernel, strides, padding, **options):
    options = {"dimension_numbers": CHANNELS_LAST, **options}
    ours = partial(conv_general_dilated, window_strides=strides, padding=padding, **options)
    xlas = partial(lax.conv_general_dilated, window_strides=strides, padding=padding, **options)
    got = jax.jit(partial(value_and_gradients, ours))(images, kernel)
    want = jax.jit(partial(value_and_gradients, xlas))(images, kernel)
    for ours_, xlas_ in zip(got, want, strict=True):
        assert ours_.dtype == xlas_.dtype
        np.testing.assert_allclose(ours_, xlas_, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "kernel", "strides", "padding"),
    [
        ((3, 28, 28, 1), (5, 5, 1, 6), (1, 1), "SAME"),
        ((3, 14, 14, 6), (5, 5, 6, 16), (1, 1), "VALID"),
        ((2, 9, 11, 3), (3, 3, 3, 64), (1, 1), "SAME"),
        ((2, 9, 11, 16), (3, 3, 16, 16), (1, 1), "SAME_LOWER"),
        ((2, 8, 8, 16), (3, 3, 16, 32), (2, 2), "SAME"),
        ((2, 9, 7, 4), (3, 3, 4, 8), (2, 1), ((1, 1), (0, 2))),
        ((2, 8, 8, 16), (1, 1, 16, 32), (2, 2), "SAME"),
        ((2, 8, 8, 4), (1, 1, 4, 5), (1, 1), "VALID"),
        ((2, 12, 12, 2), (1, 5, 2, 3), (1, 1), "SAME"),
        ((2, 19, 17, 3), (7, 7, 3, 5), (2, 2), ((3, 3), (3, 3))),
        ((2, 11, 13, 3), (2, 2, 3, 4), (3, 4), "VALID"),
        ((2, 5, 5, 2), (5, 5, 2, 3), (1, 1), "VALID"),
        ((2, 9, 9, 2), (3, 3, 2, 3), (1, 1), ((-1, 2), (0, -2))),
    ],
)
def test_convolution_equals_xlas_in_value_and_gradients(shape, kernel, strides, padding):
    assert_same_convolution(images_like(shape), images_like(kernel, 1), strides, padding)


@pytest.mark.parametrize(
    ("kernel_channels", "options"),
    [
        (4, {"rhs_dilation": (2, 2)}),
        (4, {"lhs_dilation": (2, 1)}),
        (2, {"feature_group_count": 2}),
        (4, {"preferred_element_type": jnp.float32}),
    ],
)
def test_unusual_convolutions_are_left_to_xla(kernel_channels, options):
    images, kernel = images_like((2, 9, 9, 4)), images_like((3, 3, kernel_channels, 6), 1)
    assert_same_convolution(images, kernel, (1, 1), "SAME", **options)
    assert "stablehlo.convolution" in lowered_text("cpu", images, kernel, **options)


def lowered_text(platform, images, kernel, **options):
    options = {"dimension_numbers": CHANNELS_LAST, **options}
    convolution = partial(conv_general_dilated, window_strides=(1, 1), padding="SAME", **options)
    traced = jax.jit(partial(value_and_gradients, convolution)).trace(images, kernel)
    return traced.lower(lowering_platforms=(platform,)).as_text()


def test_other_layouts_are_left_to_xla():
    images, kernel = images_like((2, 4, 9, 8)), images_like((6, 4, 3, 3), 1)
    for numbers in (None, ("NCHW", "OIHW", "NCHW")):
        assert_same_convolution(images, kernel, (1, 1), "SAME", dimension_numbers=numbers)


def test_a_kernel_larger_than_the_images_gives_what_xla_gives():
    assert_same_convolution(
        images_like((2, 3, 3, 1)), images_like((5, 5, 1, 2), 1), (1, 1), "VALID"
    )


def test_products_on_the_cpu_and_convolutions_elsewhere_never_both():
    images, kernel = images_like((2, 8, 8, 3)), images_like((3, 3, 3, 6), 1)
    on_cpu, on_gpu = (lowered_text(p, images, kernel) for p in ("cpu", "cuda"))
    assert "stablehlo.dot_general" in on_cpu
    assert "stablehlo.convolution" not in on_cpu
    assert on_gpu.count("stablehlo.convolution") == 3  # one forward, two gradients
    assert "stablehlo.dot_general" not in on_gpu


def test_half_precision_stays_half():
    images = images_like((2, 8, 8, 3), dtype=jnp.bfloat16)
    kernel = images_like((3, 3, 3, 6), 1, jnp.bfloat16)
    got = conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=CHANNELS_LAST)
    want = lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=CHANNELS_LAST)
    assert got.dtype == want.dtype
    np.testing.assert_allclose(
        got.astype(jnp.float32), want.astype(jnp.float32), rtol=0.02, atol=0.05
    )


@pytest.mark.parametrize(
    ("shape", "flat"), [((28, 28, 1), 400), ((16, 16, 1), 64), ((32, 32, 3), 576)]
)
def test_parameters_are_those_of_plain_layers(shape, flat):
    params = LeNet().init(jax.random.key(0), jnp.zeros((1, *shape)))["params"]
    plain = PlainLeNet().init(jax.random.key(0), jnp.zeros((1, *shape)))["params"]
    jax.tree.map(np.testing.assert_array_equal, params, plain)
    assert params["Conv_0"]["kernel"].shape == (5, 5, shape[-1], 6)
    assert params["Conv_1"]["kernel"].shape == (5, 5, 6, 16)
    assert params["Dense_0"]["kernel"].shape == (flat, 120)
    assert params["Dense_2"]["kernel"].shape == (84, 10)


def test_number_of_parameters_on_mnist():
    params = LeNet().init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 61_706


@pytest.mark.parametrize("shape", [(28, 28, 1), (16, 16, 1), (30, 32, 3)])
def test_logits_and_gradients_equal_those_of_plain_layers(shape):
    # Random images, so that no window has equal maxima, whose gradients may differ.
    images = images_like((4, *shape))
    params = LeNet().init(jax.random.key(0), images)

    @partial(jax.jit, static_argnums=0)
    def logits_and_gradients(model, params):
        def loss(params, images):
            logits = model.apply(params, images)
            return jnp.sum(logits**2), logits

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, images)

    got = logits_and_gradients(LeNet(), params)
    want = logits_and_gradients(PlainLeNet(), params)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), got, want)


def test_pooling_of_equal_maxima_shares_the_gradient():
    # A blank image: all outputs of the first convolution, away from the border, are equal.
    images = jnp.zeros((2, 28, 28, 1))
    params = LeNet().init(jax.random.key(0), images)
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)  # biases past the ReLU
    got, want = (
        jax.jit(jax.grad(lambda p, m=model: jnp.sum(m.apply(p, images)[:, 0])))(params)
        for model in (LeNet(), PlainLeNet())
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3), got, want)


def test_num_classes_and_train_flag():
    images = images_like((3, 28, 28, 1))
    logits, variables = LeNet(num_classes=7).init_with_output(jax.random.key(0), images)
    assert logits.shape == (3, 7)
    np.testing.assert_array_equal(logits, LeNet(num_classes=7).apply(variables, images, train=True))


def test_works_in_a_loop_of_traced_length_under_pmap():
    images = images_like((1, 4, 16, 16, 1))
    params = LeNet().init(jax.random.key(0), images[0])

    def descend(params, images, steps):
        def step(_, params):
            gradients = jax.grad(lambda p: jnp.mean(LeNet().apply(p, images) ** 2))(params)
            return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients)

        return lax.fori_loop(0, steps, step, params)

    replicated = jax.tree.map(lambda leaf: leaf[None], params)
    looped = jax.pmap(descend, in_axes=(0, 0, None))(replicated, images, 2)
    stepped = params
    one_step = jax.jit(descend)
    for _ in range(2):
        stepped = one_step(stepped, images[0], 1)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[0], b, rtol=1e-4, atol=1e-5), looped, stepped
    )


def test_works_under_vmap_of_grad_for_gradients_of_single_examples():
    images = images_like((3, 16, 16, 1))
    params = LeNet().init(jax.random.key(0), images)

    def loss(params, image):
        return jnp.sum(LeNet().apply(params, image[None]) ** 2)

    each = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0)))(params, images)
    whole = jax.jit(jax.grad(lambda p: jnp.sum(LeNet().apply(p, images) ** 2)))(params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a.sum(0), b, rtol=1e-3, atol=1e-4), each, whole
    )


def test_forward_mode_differentiation():
    images = images_like((2, 16, 16, 1))
    params = LeNet().init(jax.random.key(0), images)

    def logits(images):
        return LeNet().apply(params, images)

    tangent = images_like(images.shape, 5)
    _, forward = jax.jit(lambda: jax.jvp(logits, (images,), (tangent,)))()
    jacobian = jax.jit(jax.jacrev(logits))(images)
    backward = jnp.tensordot(jacobian, tangent, axes=4)
    np.testing.assert_allclose(forward, backward, rtol=1e-3, atol=1e-4)
