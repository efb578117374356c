"""Converts a Keras classifier to a PyTorch module with the same weights, for comparisons with PyTorch packages.

python benchmarks/twin.py WideResNet16_2 --form=dm      # writes its weights for PyTorch, and the twin loads the file
"""

import argparse
import functools
import os
import tempfile

import keras
import numpy as np
import safetensors.torch
import torch
from torch.nn import functional as F

from keras_sat import activations, models
from keras_sat.models import convnext
from keras_sat.models.normalization import Normalize

ACTIVATIONS = {"relu": F.relu, "silu": F.silu, "elu": F.elu, "softplus": F.softplus, "mish": F.mish}
NAMES = {
    "kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


class Twin(torch.nn.Module):
    """A PyTorch module that computes the logits of a Keras model.

    Its input is [batch, channels, height, width] in 0..1, where the model takes [batch, height, width, channels] in
    0..255. `tensors` are its weights: {name of a layer: {PyTorch's name of a variable: tensor in PyTorch's layout}}.
    """

    def __init__(self, model):
        super().__init__()
        names = {id(layer.output): layer.name for layer in model.layers}
        self.tensors = {layer.name: _tensors(layer) for layer in model.layers}
        self.operations = [
            (layer.name, [names[id(tensor)] for tensor in _inputs(layer)], _operation(layer, self.tensors[layer.name]))
            for layer in model.layers[1:]
        ]
        self.first, self.last = model.layers[0].name, model.layers[-1].name

    def forward(self, images):
        values = {self.first: images * 255}
        for name, sources, operation in self.operations:
            values[name] = operation(*(values[source] for source in sources))
        return values[self.last]

    def load_file(self, path):
        """Loads what `models.pytorch.save` wrote: exactly the entries that there are."""
        entries = safetensors.torch.load_file(path)
        for scope, tensors in self.tensors.items():
            for name, tensor in tensors.items():
                tensor.copy_(entries.pop(f"{scope}.{name}"))
        if entries:
            raise ValueError(f"{path} has more entries than the network: {', '.join(entries)}")


def _inputs(layer):
    return layer.input if isinstance(layer.input, list) else [layer.input]


def _tensors(layer):
    """Returns {PyTorch's name: tensor in PyTorch's layout} for the weights of a layer."""
    tensors = {}
    axes = (2, 3, 0, 1) if isinstance(layer, keras.layers.DepthwiseConv2D) else (3, 2, 0, 1)
    names = {} if isinstance(layer, convnext.LayerScale) else NAMES
    for variable in layer.weights:
        array = variable.numpy()
        array = array.transpose(axes) if array.ndim == 4 else array.T
        tensors[names.get(variable.name, variable.name)] = torch.from_numpy(np.ascontiguousarray(array))
    return tensors


def _pad_same(x, size, strides, value=0.0):
    """Pads as TensorFlow's "same" does."""
    pads = []
    for length in reversed(x.shape[2:]):
        total = max(0, (-(-length // strides) - 1) * strides + size - length)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads, value=value)


def _over_channels(function):
    """Returns a function of the last axis as a function of the channels, the second of the four axes of an image."""
    return lambda x: function(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if x.ndim == 4 else function(x)


def _operation(layer, tensors):
    """Returns a layer's computation in inference mode, as a function of PyTorch tensors."""
    match layer:
        case keras.layers.Rescaling():
            return lambda x: x * layer.scale + layer.offset
        case Normalize():
            mean, std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (layer.mean, layer.std))
            return lambda x: (x / 255 - mean) / std
        case keras.layers.ZeroPadding2D():
            (top, bottom), (left, right) = layer.padding
            return lambda x: F.pad(x, (left, right, top, bottom))
        case keras.layers.MaxPooling2D():
            size, strides = layer.pool_size[0], layer.strides[0]
            pad = _pad_same if layer.padding == "same" else lambda x, *_: x
            return lambda x: F.max_pool2d(pad(x, size, strides, -torch.inf), size, strides)
        case keras.layers.Conv2D() | keras.layers.DepthwiseConv2D():
            kernel, bias = tensors["weight"], tensors.get("bias")
            pad = _pad_same if layer.padding == "same" else lambda x, *_: x
            groups = layer.groups if isinstance(layer, keras.layers.Conv2D) else len(kernel)
            return lambda x: F.conv2d(
                pad(x, kernel.shape[-1], layer.strides[0]), kernel, bias, stride=layer.strides, groups=groups
            )
        case keras.layers.BatchNormalization():
            mean, variance, gamma, beta = (tensors[name] for name in ("running_mean", "running_var", "weight", "bias"))
            return lambda x: F.batch_norm(x, mean, variance, gamma, beta, eps=layer.epsilon)
        case keras.layers.LayerNormalization():
            gamma, beta = tensors["weight"], tensors["bias"]
            return _over_channels(lambda x: F.layer_norm(x, x.shape[-1:], gamma, beta, layer.epsilon))
        case convnext.LayerScale():
            return _over_channels(lambda x: x * tensors["gamma"])
        case keras.layers.Dropout():
            return lambda x: x
        case activations.GELU():
            return functools.partial(F.gelu, approximate="tanh" if layer.approximate else "none")
        case keras.layers.Activation():
            return ACTIVATIONS[layer.activation.__name__]
        case keras.layers.Add():
            return torch.add
        case keras.layers.GlobalAveragePooling2D():
            return lambda x: x.mean((2, 3))
        case keras.layers.Dense():
            return _over_channels(lambda x: F.linear(x, tensors["weight"], tensors["bias"]))
    raise NotImplementedError(f"{layer.name} is a {type(layer).__name__}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--form")
    args = parser.parse_args()
    model, other = (models.build(args.model, args.form) for _ in range(2))  # random weights, two times
    images = np.random.default_rng(0).integers(0, 256, (8, *model.input_shape[1:])).astype(np.uint8)
    twin = Twin(other)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.safetensors")
        models.pytorch.save(model, path)
        twin.load_file(path)
    theirs = twin(torch.from_numpy(images.transpose(0, 3, 1, 2) / 255).float()).detach().numpy()
    for name, each in (("the network", model), ("the network before the twin loaded the file", other)):
        ours = np.array(each(images, training=False))
        print(f"twin and {name}: logits differ by {np.abs(ours - theirs).max() / np.ptp(ours):.1e} of their range")


if __name__ == "__main__":
    main()
