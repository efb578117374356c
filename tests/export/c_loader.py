"""Loads and runs a SavedModel by TensorFlow's C API alone, as a server in C++ does: no Python of TensorFlow's.

python c_loader.py LIBTENSORFLOW SAVED_MODEL CALLS.json INPUTS.npz OUTPUTS.npz

A call is {"inputs": {name of an array: name of a tensor}, "outputs": {name of an array: name of a tensor}}.
Bytes are an array of objects. The message of a call that fails is the array "error".
"""

import ctypes
import json
import sys

import numpy as np

TYPES = {1: np.float32, 4: np.uint8, 9: np.int64}
STRING, STRING_SIZE = 7, 24  # TF_STRING, sizeof(TF_TString)


class Output(ctypes.Structure):
    _fields_ = [("operation", ctypes.c_void_p), ("index", ctypes.c_int)]


class Library:
    """TensorFlow's C API. It declares that its functions return pointers, not int."""

    def __init__(self, path):
        self._library = ctypes.CDLL(path)

    def __getattr__(self, name):
        function = getattr(self._library, f"TF_{name}")
        function.restype = ctypes.c_char_p if name == "Message" else ctypes.c_void_p
        return function


def pointer(address):
    return ctypes.c_void_p(address)


class Session:
    def __init__(self, library, folder):
        self.tf = Library(library)
        self.status = pointer(self.tf.NewStatus())
        self.graph = pointer(self.tf.NewGraph())
        tags = (ctypes.c_char_p * 1)(b"serve")
        self.session = pointer(
            self.tf.LoadSessionFromSavedModel(
                pointer(self.tf.NewSessionOptions()), None, folder.encode(), tags, 1, self.graph, None, self.status
            )
        )
        self.check()

    def check(self):
        if self.tf.GetCode(self.status):
            raise RuntimeError(self.tf.Message(self.status).decode())

    def output(self, name):
        operation, _, index = name.partition(":")
        return Output(self.tf.GraphOperationByName(self.graph, operation.encode()), int(index or 0))

    def tensor(self, array):
        if array.dtype == object:
            return self.strings(array)
        (code,) = [code for code, dtype in TYPES.items() if dtype == array.dtype]
        array = np.ascontiguousarray(array)
        tensor = self.allocate(code, array.shape, array.nbytes)
        ctypes.memmove(self.tf.TensorData(tensor), array.ctypes.data, array.nbytes)
        return tensor

    def strings(self, array):
        tensor = self.allocate(STRING, array.shape, array.size * STRING_SIZE)
        for number, value in enumerate(array):
            place = pointer(self.tf.TensorData(tensor) + number * STRING_SIZE)
            self.tf.StringInit(place)
            self.tf.StringCopy(place, value, ctypes.c_size_t(len(value)))
        return tensor

    def allocate(self, code, shape, size):
        dims = (ctypes.c_int64 * len(shape))(*shape)
        return pointer(self.tf.AllocateTensor(code, dims, len(shape), ctypes.c_size_t(size)))

    def array(self, tensor):
        shape = [self.tf.Dim(tensor, axis) or 0 for axis in range(self.tf.NumDims(tensor) or 0)]
        dtype = TYPES[self.tf.TensorType(tensor)]
        data = ctypes.string_at(self.tf.TensorData(tensor), self.tf.TensorByteSize(tensor) or 0)
        return np.frombuffer(data, dtype).reshape(shape)

    def run(self, inputs, outputs):
        """Returns the arrays of the tensors named `outputs`, given {name of a tensor: array}."""
        into = (Output * len(inputs))(*map(self.output, inputs))
        given = (ctypes.c_void_p * len(inputs))(*(self.tensor(array).value for array in inputs.values()))
        out_of = (Output * len(outputs))(*map(self.output, outputs))
        results = (ctypes.c_void_p * len(outputs))()
        self.tf.SessionRun(
            self.session,
            *(None, into, given, len(inputs)),
            *(out_of, results, len(outputs)),
            *(None, 0, None, self.status),
        )
        self.check()
        return [self.array(pointer(tensor)) for tensor in results]


def main(library, folder, calls, asked, answered):
    session, outputs = Session(library, folder), {}
    arrays = dict(np.load(asked, allow_pickle=True))
    with open(calls) as file:
        calls = json.load(file)
    for call in calls:
        inputs = {tensor: arrays[name] for name, tensor in call["inputs"].items()}
        try:
            outputs |= zip(call["outputs"], session.run(inputs, call["outputs"].values()))
        except RuntimeError as error:
            outputs["error"] = str(error)
    np.savez(answered, **outputs)
    assert "tensorflow" not in sys.modules


if __name__ == "__main__":
    main(*sys.argv[1:])
