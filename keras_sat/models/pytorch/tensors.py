"""What the pickle of a PyTorch file may name, and the array that each tensor becomes.

PyTorch's own list of what `torch.load(weights_only=True)` allows says what a file of weights needs
(`torch/_weights_only_unpickler.py`). This list adds what training scripts save beside the weights: NumPy's arrays and
numbers, `argparse.Namespace` and paths.
"""

import dataclasses
import posixpath
import re
import sys
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from keras_sat.models.pytorch.pickles import Builder, Unpickler, Unreadable

DTYPES = {
    name: np.dtype(getattr(ml_dtypes, name, name))
    for name in (
        "float64", "float32", "float16", "bfloat16", "complex128", "complex64", "bool",
        "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8",
    )
}  # fmt: skip
STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
}


@dataclasses.dataclass(frozen=True)
class Storage:
    """The memory that one tensor or several are views of."""

    data: np.ndarray  # bytes: uint8 [length]
    dtype: np.dtype


class Namespace(dict):
    """The attributes of an `argparse.Namespace`, such as the arguments of a training script."""


def _view(storage, dtype, offset, size, stride):
    """Returns an array that shares a storage's memory. Offset and strides count elements, as in PyTorch."""
    if not all(size):
        return np.empty(size, dtype)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if min(offset, *size, *stride, 0) < 0 or last >= storage.data.size // dtype.itemsize:
        raise Unreadable("is damaged: one of its tensors reaches beyond its storage.")
    strides = [step * dtype.itemsize for step in stride]
    return np.ndarray(size, dtype, storage.data, offset * dtype.itemsize, strides)


def _tensor(storage, offset, size, stride, requires_grad=False, hooks=None, metadata=None):
    if metadata and any(metadata.values()):
        raise Unreadable(f"holds a tensor that is a conjugated or negated view ({metadata}). {RESAVE}")
    return _view(storage, storage.dtype, offset, size, stride)


def _tensor_of_type(storage, offset, size, stride, requires_grad, hooks, dtype, metadata=None):
    return _tensor(Storage(storage.data, dtype), offset, size, stride, metadata=metadata)


def _tensor_subclass(rebuild, kind, arguments, state):
    if kind not in TENSOR_TYPES:
        raise Unreadable(f"holds a tensor of the type {kind}. {RESAVE}")
    return rebuild.function(*arguments)


def _device_tensor(values, dtype, device, requires_grad):
    if values.dtype != dtype:
        raise Unreadable(f"holds a tensor of a device as {values.dtype} in place of {dtype}. {RESAVE}")
    return values


def _numpy_dtype(text, *_):
    dtype = np.dtype(text)
    if dtype.kind not in "fiubcSU":
        raise Unreadable(f"holds a NumPy array of the type {text}: only numbers and text are read.")
    return dtype


def _numpy_scalar(dtype, data):
    (value,) = np.frombuffer(data, dtype)
    return value


def _numpy_array(data, dtype, shape, order):
    return np.frombuffer(data, dtype).reshape(shape, order=order)


def _empty_array(*_):
    return np.empty(0, np.uint8)  # it gets its values by `set_state`


def _encode(text, encoding):
    if encoding not in ("latin1", "latin-1"):
        raise Unreadable(f"encodes bytes as {encoding!r}; expected 'latin1'.")
    return text.encode("latin1")


def _bytes(data=b"", encoding="latin1"):
    return _encode(data, encoding) if isinstance(data, str) else bytes(memoryview(data))


def _parameter(values, *_):
    return values


def _path(*parts):
    return posixpath.join(*parts)


_BUILDERS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_type,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._utils._rebuild_device_tensor_from_numpy": _device_tensor,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _device_tensor,
    "torch._utils._rebuild_xla_tensor": _device_tensor,
    "torch._tensor._rebuild_from_type_v2": _tensor_subclass,
    "torch.Size": tuple,
    "torch.device": lambda kind, index=None: kind if index is None else f"{kind}:{index}",
    "torch.torch_version.TorchVersion": str,
    "numpy.dtype": _numpy_dtype,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy.core.multiarray._reconstruct": _empty_array,
    "numpy.core.numeric._frombuffer": _numpy_array,
    "collections.OrderedDict": dict,
    "collections.Counter": dict,
    "collections.defaultdict": lambda *_: {},
    "argparse.Namespace": Namespace,
    "types.SimpleNamespace": Namespace,
    "_codecs.encode": _encode,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytes,
    "builtins.complex": complex,
    "builtins.set": set,
    "builtins.frozenset": frozenset,
    **{f"pathlib.{kind}": _path for kind in ["Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"]},
}
# Types that are only arguments: of an array, of a tensor with attributes, and what a defaultdict's new items are.
TENSOR_TYPES = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")
_TYPES = (
    *TENSOR_TYPES,
    "numpy.ndarray",
    *(f"builtins.{kind}" for kind in ["list", "dict", "tuple", "int", "float", "str", "bool"]),
)
# Every name that a file may hold, and the object that stands for it. A name is "module.name".
NAMES: dict[str, Any] = {
    **{name: Builder(name, function) for name, function in _BUILDERS.items()},
    **{name: name for name in _TYPES},
    **{f"torch.{name}": dtype for name, dtype in DTYPES.items()},
    **{f"torch.{name}": DTYPES[dtype] for name, dtype in STORAGES.items()},
}
# Names that were moved between modules.
_MOVED = {
    "__builtin__": "builtins",
    "numpy._core.multiarray": "numpy.core.multiarray",
    "numpy._core.numeric": "numpy.core.numeric",
    "pathlib._local": "pathlib",
    "torch.cuda": "torch",
    "torch.storage": "torch",
    "torch.tensor": "torch._tensor",
}

RESAVE = 'Load it with PyTorch and save plain tensors: torch.save(model.state_dict(), "model.pt").'
_NOTHING_RAN = "Only tensors, numbers, text and containers are read, and nothing of the file was run."
_WHOLE_MODEL = (
    "If the file is a whole model, saved with its classes, write its state dict with PyTorch, provided you trust its "
    'author: model = torch.load(path, map_location="cpu", weights_only=False); torch.save(model.state_dict(), '
    '"model.pt")'
)
_DILL = (
    "The file was written with dill, which also saves Python code (MadryLab's robustness uses it). Write its state "
    "dict with PyTorch, provided you trust its author, for this runs the file's code: import dill, torch; checkpoint = "
    'torch.load(path, pickle_module=dill, map_location="cpu", weights_only=False); torch.save(checkpoint["model"], '
    '"model.pt") (older files have "state_dict" in place of "model")'
)
_STANDARD_LIBRARY = (
    "No file of weights needs this name, and the file may be hostile: do not load it with PyTorch either, unless you "
    "trust its author."
)
# What a refused name says about its file: (pattern of "module.name", advice).
_ADVICE = (
    (r"dill\b", _DILL),
    (r"torch\._utils\._rebuild_qtensor|torch\.ao\b", f"It holds quantised tensors. {RESAVE}"),
    (r"torch\._utils\._rebuild_(sparse|nested)|torch\.serialization", f"It holds sparse or nested tensors. {RESAVE}"),
    (r"torch\._utils\._rebuild_meta", "It holds tensors of the device 'meta', which have no values."),
    (r"torch\.distributed", f"Its tensors are distributed over several processes. {RESAVE}"),
    (r"torch\.\w+$", f"It holds tensors of a type that is not read. {RESAVE}"),
    (r"", _WHOLE_MODEL),
)


class TensorUnpickler(Unpickler):
    """Reads pickles that hold tensors, numbers, text and containers. All else is refused by its name."""

    def find(self, module: str, name: str) -> Any:
        found = f"{_MOVED.get(module, module)}.{name}"
        if found in NAMES:
            return NAMES[found]
        full = f"{module}.{name}"
        advice = next(text for pattern, text in _ADVICE if re.match(pattern, full))
        if found.split(".")[0] in sys.stdlib_module_names:
            advice = _STANDARD_LIBRARY
        raise Unreadable(f"names {full}, which is refused. {_NOTHING_RAN} {advice}")

    def set_state(self, instance: Any, state: Any) -> None:
        if isinstance(instance, Namespace):
            instance.update(state)
        elif isinstance(instance, dict):
            pass  # the attributes of an OrderedDict, such as the versions of a state dict's modules
        elif isinstance(instance, np.dtype):
            if state[1] not in ("<", "|", "="):
                raise Unreadable(f"holds a NumPy array with the order of bytes {state[1]!r}; expected little-endian.")
        elif isinstance(instance, np.ndarray) and not instance.size:
            _, shape, dtype, fortran, data = state
            if not (isinstance(dtype, np.dtype) and isinstance(data, bytes)):
                raise Unreadable("holds a NumPy array of objects: only numbers and text are read.")
            instance.__setstate__((1, shape, dtype, fortran, data))
        else:
            super().set_state(instance, state)
