"""Models in ``flax.linen`` whose output is the output of their last dense layer."""

from jdss.models.lenet import LeNet

__all__ = ["LeNet"]
