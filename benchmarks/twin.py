"""Converts a Keras classifier to a PyTorch module with the same weights, for comparisons with PyTorch packages."""

import keras
import numpy as np
import torch
from torch.nn import functional as F

ACTIVATIONS = {"relu": F.relu, "silu": F.silu, "elu": F.elu, "softplus": F.softplus, "mish": F.mish}


class Twin(torch.nn.Module):
    """A PyTorch module that computes the logits of a Keras model.

    Its input is [batch, channels, height, width] in 0..1, where the model takes [batch, height, width, channels] in
    0..255.
    """

    def __init__(self, model):
        super().__init__()
        names = {id(layer.output): layer.name for layer in model.layers}
        self.operations = [
            (layer.name, [names[id(tensor)] for tensor in _inputs(layer)], _operation(layer))
            for layer in model.layers[1:]
        ]
        self.first, self.last = model.layers[0].name, model.layers[-1].name

    def forward(self, images):
        values = {self.first: images * 255}
        for name, sources, operation in self.operations:
            values[name] = operation(*(values[source] for source in sources))
        return values[self.last]


def _inputs(layer):
    return layer.input if isinstance(layer.input, list) else [layer.input]


def _operation(layer):
    """Returns a layer's computation in inference mode, as a function of PyTorch tensors."""
    weights = [torch.from_numpy(np.array(weight)) for weight in layer.get_weights()]
    match layer:
        case keras.layers.Rescaling():
            return lambda x: x * layer.scale + layer.offset
        case keras.layers.ZeroPadding2D():
            (top, bottom), (left, right) = layer.padding
            return lambda x: F.pad(x, (left, right, top, bottom))
        case keras.layers.MaxPooling2D():  # size 3, stride 2, "same": even sizes are padded right and below
            return lambda x: F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-torch.inf), layer.pool_size, layer.strides)
        case keras.layers.Conv2D():
            kernel = weights[0].permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
            padding = kernel.shape[-1] // 2 if layer.padding == "same" else 0
            return lambda x: F.conv2d(x, kernel, stride=layer.strides, padding=padding, groups=layer.groups)
        case keras.layers.BatchNormalization():
            gamma, beta, mean, variance = weights
            return lambda x: F.batch_norm(x, mean, variance, gamma, beta, eps=layer.epsilon)
        case keras.layers.Activation():
            return ACTIVATIONS[layer.activation.__name__]
        case keras.layers.Add():
            return torch.add
        case keras.layers.GlobalAveragePooling2D():
            return lambda x: x.mean((2, 3))
        case keras.layers.Dense():
            return lambda x: x @ weights[0] + weights[1]
    raise NotImplementedError(f"{layer.name} is a {type(layer).__name__}")
