"""ResNets: published sizes, an independent forward pass, half precision, repetitions."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jdss
from jdss.models import ResNet, ResNet18, ResNet50

IMAGES = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)


def shapes(model, **options):
    return jax.eval_shape(partial(model.init_with_output, **options), jax.random.key(0), IMAGES)


def num_parameters(model):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes(model)[1]["params"]))


@pytest.mark.parametrize(
    ("model", "published"),
    [
        (ResNet18(num_classes=10), 11_173_962),
        (ResNet18(num_classes=100), 11_220_132),
        (ResNet50(num_classes=10), 23_520_842),
        (ResNet50(num_classes=100), 23_705_252),
        (ResNet(10, repetitions=(3, 4, 6, 3)), 21_282_122),  # ResNet-34
    ],
)
def test_numbers_of_parameters_are_the_published_ones(model, published):
    assert num_parameters(model) == published


def test_repetitions_are_blocks_of_each_stage_and_any_stages_there_are():
    shorter = shapes(ResNet50(repetitions=(1, 2), width=8))[1]["params"]
    assert sum(name.startswith("_Bottleneck") for name in shorter) == 3
    # A bottleneck of 16 features between 64: two 1 × 1, one 3 × 3, and their BatchNorms.
    more = num_parameters(ResNet50(repetitions=(1, 3), width=8))
    block = 64 * 16 + 9 * 16 * 16 + 16 * 64 + 2 * (16 + 16 + 64)
    assert more - num_parameters(ResNet50(repetitions=(1, 2), width=8)) == block


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"width": 0}, ValueError, "width must be at least 1"),
        ({"repetitions": (1, 0)}, ValueError, r"repetitions\[1\] must be at least 1"),
        ({"repetitions": (1.0,)}, TypeError, r"repetitions\[0\] must be an int"),
        ({"repetitions": ()}, ValueError, "at least one stage"),
    ],
)
def test_bad_sizes_are_refused_by_name(options, error, match):
    with pytest.raises(error, match=match):
        shapes(ResNet18(**options))


def test_half_precision_computes_in_bfloat16_with_parameters_and_logits_in_float32():
    model = ResNet18(width=4, repetitions=(1, 1), dtype=jnp.bfloat16)
    logits, variables = shapes(model, train=True)
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    text = str(jax.make_jaxpr(model.apply)(variables, IMAGES))
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert "bf16[2,32,32,4]" in text
    assert products[-1].split(":")[1].startswith("f32[2,10]")  # the last layer's


def convolve(x, kernel, stride):
    padding = [(kernel.shape[0] // 2,) * 2] * 2
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride,) * 2, padding, dimension_numbers=numbers)


def by_hand(params, images, stages, bottleneck):
    """The training-mode forward pass, from the paper's figures."""

    def normalise(x, norm):
        mean, var = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
        return (x - mean) / jnp.sqrt(var + 1e-5) * norm["scale"] + norm["bias"]

    def layer(p, i, x, stride):
        return normalise(convolve(x, p[f"Conv_{i}"]["kernel"], stride), p[f"BatchNorm_{i}"])

    x = jax.nn.relu(layer(params, 0, images, 1))
    kind, strides = ("_Bottleneck", (1, None, 1)) if bottleneck else ("_Basic", (None, 1))
    number = 0
    for stage, repetitions in enumerate(stages):
        for i in range(repetitions):
            stride = 2 if stage > 0 and i == 0 else 1
            p, y = params[f"{kind}_{number}"], x
            for j, own in enumerate(strides):
                y = layer(p, j, jax.nn.relu(y) if j else y, own or stride)
            if f"Conv_{len(strides)}" in p:
                x = layer(p, len(strides), x, stride)
            x, number = jax.nn.relu(x + y), number + 1
    dense = params["Dense_0"]
    return x.mean(axis=(1, 2)) @ dense["kernel"] + dense["bias"]


@pytest.mark.parametrize("bottleneck", [False, True])
def test_logits_are_those_of_the_published_architecture(bottleneck):
    model = ResNet(5, width=3, repetitions=(2, 1), bottleneck=bottleneck)
    generator = np.random.default_rng(0)
    images = jnp.asarray(generator.normal(size=(3, 7, 8, 3)), jnp.float32)
    like = jax.eval_shape(model.init, jax.random.key(0), images)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * generator.normal(size=leaf.shape) + 0.1, jnp.float32), like
    )

    @jax.jit
    def both(variables):
        logits, _ = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return logits, by_hand(variables["params"], images, (2, 1), bottleneck)

    np.testing.assert_allclose(*both(variables), rtol=1e-3, atol=1e-4)


def test_last_layer_gradients_are_known_of_a_resnet():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    data = jdss.make_examples(images, np.arange(6) % 3)
    state = jdss.init_state(ResNet(3, width=4, repetitions=(1,)), data.inputs, jax.random.key(0))
    gradients = jdss.compute_gradients(state, data, np.arange(6), chunk_size=6)
    assert gradients.errors.shape == (6, 3)
    assert gradients.inputs.shape == (6, 5)
