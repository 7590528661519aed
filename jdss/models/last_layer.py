"""Applying a Flax module and catching what goes into its last dense layer.

Any module whose output is the output of an `nn.Dense` of linen, or of an `nnx.Linear`, works
unchanged. What every such layer takes and gives is marked by a name in the program that the module
traces to, and as the program is run, it is noted what each value is made by: also where the output
is cast, or made inside of `remat` or `jit`. A layer that is called more than once counts by the
call that is the output.
"""

from itertools import count
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from jdss.gradients import append_ones
from jdss.models.calling import apply_model, class_name, holds_nnx
from jdss.models.layers import intercept

_CALLS = {"remat", "remat2", "checkpoint", "jit", "pjit", "closed_call", "core_call"}
"""Primitives whose outputs are those of the program that they hold."""

_TAKES, _GIVES = "jdss dense layer takes ", "jdss dense layer gives "
_numbers = count()


class LastLayer(NamedTuple):
    """What the last dense layer did."""

    logits: jax.Array  # float32[b, c], its outputs
    inputs: Any  # float32[b, d], with a column of ones where it has a bias; None without a layer


def apply_last_layer(
    model: nn.Module, variables: Any, inputs: Any, *, required: bool = True
) -> LastLayer:
    """Applies the module in evaluation mode and returns its last dense layer's inputs too.

    Where the output is not that of an `nn.Dense`, which is `required`, ValueError names the layers
    found, what the output was made by, and how to go on.
    """
    layers: dict[str, None] = {}  # by their paths, in the order of their calls
    model_name = class_name(model)
    kind = "nnx.Linear" if holds_nnx(model) else "nn.Dense"

    def mark(layer: Any, call: Any, *arguments: Any, **keywords: Any) -> Any:
        made: Any = type(layer) if isinstance(layer, nn.Module) else type(layer).__base__
        if not issubclass(made, nn.Dense | nnx.Linear):
            return call(*arguments, **keywords)
        path: str = getattr(layer, "jdss_path", None) or "/".join(getattr(layer, "path", ()))
        if made.__call__ not in (nn.Dense.__call__, nnx.Linear.__call__):
            # It may do anything to what the layer takes and gives.
            layers[f"{path} (of {made.__name__}, with a call of its own)"] = None
            return call(*arguments, **keywords)
        layers[path] = None
        name = f"{next(_numbers)} {'with' if layer.use_bias else 'without'} bias"
        taken, *others = arguments or (keywords.pop("inputs"),)
        result = call(checkpoint_name(taken, _TAKES + name), *others, **keywords)
        return checkpoint_name(result, _GIVES + name)

    def run(variables: Any, inputs: Any) -> jax.Array:
        # What a module changes in evaluation, such as a counter, is thrown away.
        mutable = [name for name in variables if name != "params"]
        with intercept(mark):
            output, _ = apply_model(model, variables, inputs, mutable=mutable)
        if not isinstance(output, jax.Array):
            raise TypeError(
                f"the output of {model_name} must be one array, got {jax.tree.structure(output)}; "
                "the outputs of several heads are put side by side, jnp.concatenate(…, axis=-1), "
                "and taken apart in the value of a jdss.Loss"
            )
        return output

    program = jax.make_jaxpr(run)(variables, inputs)
    arguments = [_Made(leaf, "an input") for leaf in jax.tree.leaves((variables, inputs))]
    ((output, made_by, features),) = _evaluate(program, arguments)
    output = output.astype(jnp.float32)
    if features is None:
        problem = (
            f"the output of {model_name} must be the output of its last {kind}, unchanged, for its "
            f"last-layer gradients to be known; {kind} layers found: {', '.join(layers) or 'none'};"
            f" the output was made by {made_by!r}. Return the layer's output as it is (a softmax "
            "belongs into the loss), or give gradients='all', which takes those of all parameters"
        )
    elif features.ndim != 2:
        problem = (
            f"the last {kind} of {model_name} must take inputs of shape [batch, features], got "
            f"shape {features.shape}: reduce the other axes before it, or give gradients='all'"
        )
    else:
        features = features.astype(jnp.float32)
        has_bias = made_by.endswith("with bias")
        return LastLayer(output, append_ones(features) if has_bias else features)
    if required:
        raise ValueError(problem)
    return LastLayer(output, None)


class _Made(NamedTuple):
    """A value, and what made it, seen through casts and calls."""

    value: Any
    by: str  # a primitive, or the name of a marked layer
    features: Any = None  # what that layer took


def _evaluate(program: ClosedJaxpr, arguments: list[_Made]) -> list[_Made]:
    """A program's results."""
    taken: dict[str, jax.Array] = {}  # by the marked layers
    known = dict(zip(program.jaxpr.invars, arguments, strict=True))
    for variable, value in zip(program.jaxpr.constvars, program.consts, strict=True):
        known[variable] = _Made(value, "a constant")

    def read(variable: Any) -> _Made:
        is_constant = isinstance(variable, Literal)
        return _Made(variable.val, "a constant") if is_constant else known[variable]

    for equation in program.jaxpr.eqns:
        primitive, params = equation.primitive, equation.params
        given = [read(variable) for variable in equation.invars]
        if primitive.name in _CALLS:
            held: Any = params.get("jaxpr", params.get("call_jaxpr"))
            held = held if isinstance(held, ClosedJaxpr) else ClosedJaxpr(held, ())
            results = _evaluate(held, given)
        elif primitive.name == "name":
            mark, results = params["name"], given
            if mark.startswith(_TAKES):
                taken[mark.removeprefix(_TAKES)] = given[0].value
            elif mark.startswith(_GIVES):
                layer = mark.removeprefix(_GIVES)
                results = [_Made(given[0].value, layer, taken[layer])]
        else:
            own = [variable for variable in equation.invars if not isinstance(variable, Literal)]
            alone = program.jaxpr.replace(
                constvars=[], invars=own, outvars=equation.outvars, eqns=[equation]
            )
            values = jaxpr_as_fun(ClosedJaxpr(alone, ()))(*(known[v].value for v in own))
            results = [_Made(value, primitive.name) for value in values]
            if primitive.name == "convert_element_type":
                results = [given[0]._replace(value=values[0])]
        known.update(zip(equation.outvars, results, strict=True))
    return [read(variable) for variable in program.jaxpr.outvars]
