"""Applying a Flax module and catching what goes into its last dense layer.

Any module whose output is the output of an `nn.Dense` of linen, or of an `nnx.Linear`, works
unchanged. What every such layer takes and gives is marked by a name in the program that the module
traces to, and the program tells whose result the output is: also where that is cast, or made inside
of `remat` or `jit`. A layer that is called more than once counts by the call that is the output.
"""

from itertools import count
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

from jdss.gradients import append_ones
from jdss.models.calling import apply_model, class_name, holds_nnx, intercept, path_of

_CALLS = {"remat", "remat2", "checkpoint", "jit", "pjit", "closed_call", "core_call"}
"""Primitives whose outputs are those of the program that they hold."""

_SAME = {"convert_element_type", "name"}
"""Primitives that give what they take."""

_INPUTS, _RESULT = "jdss dense layer takes ", "jdss dense layer gives "
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
    layers: list[str] = []
    model_name = class_name(model)
    kind = "nnx.Linear" if holds_nnx(model) else "nn.Dense"

    def mark(layer: Any, call: Any, *arguments: Any, **keywords: Any) -> Any:
        if not isinstance(layer, nn.Dense | nnx.Linear):
            return call(*arguments, **keywords)
        layers.append(path_of(layer))
        name = f"{next(_numbers)} {'with' if layer.use_bias else 'without'} bias"
        taken, *others = arguments or (keywords.pop("inputs"),)
        result = call(checkpoint_name(taken, _INPUTS + name), *others, **keywords)
        return checkpoint_name(result, _RESULT + name)

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

    whole = jax.make_jaxpr(run)(variables, inputs)
    arguments = jax.tree.leaves((variables, inputs))
    calls, made = _origin(whole.jaxpr, whole.jaxpr.outvars[0])
    if not _is_mark(made):
        if not required:
            (output,) = _values(whole, whole.jaxpr.outvars, arguments)
            return LastLayer(output.astype(jnp.float32), None)
        made_by = "a constant" if isinstance(made, Literal) else "an input"
        made_by = made.primitive.name if isinstance(made, JaxprEqn) else made_by
        raise ValueError(
            f"the output of {model_name} must be the output of its last {kind}, unchanged, for its "
            f"last-layer gradients to be known; {kind} layers found: {', '.join(layers) or 'none'};"
            f" the output was made by {made_by!r}. Return the layer's output as it is (a softmax "
            "belongs into the loss), or give gradients='all', which takes those of all parameters"
        )
    # The layer is in the last of the programs that call one another, with the whole as the first.
    programs = [whole, *map(_held, calls)]
    name = made.params["name"].removeprefix(_RESULT)
    marks = filter(_is_mark, programs[-1].jaxpr.eqns)
    taken = next(mark.outvars[0] for mark in marks if mark.params["name"] == _INPUTS + name)
    wanted = [*(call.invars for call in calls), [taken]]
    output, *values = _values(whole, [whole.jaxpr.outvars[0], *wanted[0]], arguments)
    for program, variables_of_next in zip(programs[1:], wanted[1:], strict=True):
        values = _values(program, variables_of_next, values)
    output, features = output.astype(jnp.float32), values[0].astype(jnp.float32)
    if features.ndim == 2:
        return LastLayer(output, append_ones(features) if name.endswith("with bias") else features)
    if required:
        raise ValueError(
            f"the last {kind} of {model_name} must take inputs of shape [batch, features], got "
            f"shape {features.shape}: reduce the other axes before it, or give gradients='all'"
        )
    return LastLayer(output, None)


def _is_mark(made: Any) -> bool:
    return (
        isinstance(made, JaxprEqn)
        and made.primitive.name == "name"
        and made.params["name"].startswith((_INPUTS, _RESULT))
    )


def _origin(program: Jaxpr, variable: Any) -> tuple[list[JaxprEqn], Any]:
    """Where a value is made, seen through changes of type and calls: in these, by this equation.

    In place of the equation it is the program's input, or a constant, where that is the value.
    """
    makers = {made: equation for equation in program.eqns for made in equation.outvars}
    while not isinstance(variable, Literal) and variable in makers:
        equation = makers[variable]
        if equation.primitive.name in _CALLS:
            inner = _held(equation).jaxpr
            returned = inner.outvars[equation.outvars.index(variable)]
            calls, made = _origin(inner, returned)
            if made not in inner.invars:
                return [equation, *calls], made
            variable = equation.invars[inner.invars.index(made)]  # it is handed through
        elif equation.primitive.name in _SAME and not _is_mark(equation):
            variable = equation.invars[0]
        else:
            return [], equation
    return [], variable


def _held(call: JaxprEqn) -> ClosedJaxpr:
    held: Any = call.params.get("jaxpr", call.params.get("call_jaxpr"))
    return held if isinstance(held, ClosedJaxpr) else ClosedJaxpr(held, ())


def _values(program: ClosedJaxpr, wanted: Any, arguments: Any) -> Any:
    """The values of some of a program's variables."""
    cut = ClosedJaxpr(program.jaxpr.replace(outvars=list(wanted)), program.consts)
    return jaxpr_as_fun(cut)(*arguments)
