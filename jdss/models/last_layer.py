"""Applying a Flax module and catching what goes into its last dense layer.

Any `flax.linen` module whose output is the output of an `nn.Dense` works unchanged: the call of
every `nn.Dense` is intercepted, and the one whose result the module returned is the last layer.
"""

import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jdss.gradients import append_ones


class LastLayer(NamedTuple):
    """What the last dense layer did.

    Attributes:
      logits: float32[b, c], its outputs.
      inputs: float32[b, d], its inputs, with a column of ones where it has a bias.
    """

    logits: jax.Array
    inputs: jax.Array


def mode_arguments(model: nn.Module, *, train: bool) -> dict[str, Any]:
    """How the module's call is told whether it trains: by `train`, `deterministic`, or not."""
    parameters = inspect.signature(type(model).__call__).parameters
    if "train" in parameters:
        return {"train": train}
    if "deterministic" in parameters:
        return {"deterministic": not train}
    return {}


def apply_last_layer(model: nn.Module, variables: Any, inputs: jax.Array) -> LastLayer:
    """Applies the module in evaluation mode and returns its last dense layer's inputs too.

    Args:
      model: a module whose output is the output of its last `nn.Dense`.
      variables: its variables.
      inputs: float[b, …].

    Raises:
      ValueError: where the output is not that of an `nn.Dense`, naming the layers found.
    """
    calls: list[tuple[nn.Dense, jax.Array, jax.Array]] = []

    def catch(
        call: Any, arguments: Any, keywords: Any, context: nn.module.InterceptorContext
    ) -> Any:
        result = call(*arguments, **keywords)
        if isinstance(context.module, nn.Dense) and context.method_name == "__call__":
            taken = arguments[0] if arguments else keywords["inputs"]
            calls.append((context.module, taken, result))
        return result

    with nn.intercept_methods(catch):
        output = model.apply(variables, inputs, **mode_arguments(model, train=False))
    for layer, layer_inputs, result in reversed(calls):
        if result is output:
            if layer_inputs.ndim != 2:
                raise ValueError(
                    f"the last nn.Dense of {type(model).__name__} must take inputs of shape "
                    f"[batch, features], got shape {layer_inputs.shape}"
                )
            features = layer_inputs.astype(jnp.float32)
            if layer.use_bias:
                features = append_ones(features)
            return LastLayer(output.astype(jnp.float32), features)
    found = ", ".join("/".join(layer.path) for layer, _, _ in calls) or "none"
    raise ValueError(
        f"the output of {type(model).__name__} must be the output of its last nn.Dense, unchanged, "
        f"for its last-layer gradients to be known; nn.Dense layers found: {found}"
    )
