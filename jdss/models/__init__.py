"""Models in ``flax.linen`` whose output is the output of their last dense layer."""

from jdss.models.lenet import LeNet
from jdss.models.resnet import ResNet, ResNet18, ResNet50

__all__ = ["LeNet", "ResNet", "ResNet18", "ResNet50"]
