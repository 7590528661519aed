"""Models whose output is that of their last dense layer, and NNX modules that were trained."""

from jdss.models.lenet import LeNet
from jdss.models.nnx_model import to_nnx
from jdss.models.resnet import ResNet, ResNet18, ResNet50

__all__ = ["LeNet", "ResNet", "ResNet18", "ResNet50", "to_nnx"]
