"""Functions of ours around the calls of layers, in linen and NNX alike."""

import types
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import lru_cache, partial
from typing import Any

from flax import linen as nn
from flax import nnx

Hook = Callable[..., Any]
"""Stands in for a layer's call: is given the layer, its call, and what that is called with."""


def intercept(hook: Hook) -> AbstractContextManager[None]:
    """Inside, `hook` stands in for the calls of linen modules, `nnx.Linear`s and `BatchNorm`s."""

    def catch(
        call: Any, arguments: Any, keywords: Any, context: nn.module.InterceptorContext
    ) -> Any:
        if context.method_name != "__call__":
            return call(*arguments, **keywords)
        if getattr(context.module, "holds_nnx", False):
            return call(*arguments, **keywords, hook=hook)
        return hook(context.module, call, *arguments, **keywords)

    return nn.intercept_methods(catch)


class Held:
    """Carries what is no part of an NNX module's structure."""

    def __init__(self, value: Any) -> None:
        self.value = value


def intercept_nnx(part: nnx.Module, path: str, hook: Hook) -> None:
    """Puts `hook` around the calls of one NNX layer, which is called `path`."""
    if isinstance(part, nnx.Linear | nnx.BatchNorm):
        layer: Any = part
        layer.__class__ = _intercepted(type(part))
        layer.jdss_hook = Held((hook, path))


@lru_cache
def _intercepted(kind: Any) -> Any:
    def call(self: Any, *arguments: Any, **keywords: Any) -> Any:
        hook, _ = self.jdss_hook.value
        return hook(self, partial(kind.__call__, self), *arguments, **keywords)

    body = {"__call__": call}
    return types.new_class(kind.__name__, (kind,), exec_body=lambda names: names.update(body))


def path_of(layer: Any) -> str:
    """Where a layer is in its model."""
    path: str = layer.jdss_hook.value[1] if hasattr(layer, "jdss_hook") else "/".join(layer.path)
    return path
