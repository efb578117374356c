"""Writes the files of `files/`, with PyTorch 2.13, NumPy 2.4, safetensors and dill: python make_files.py FOLDER."""

import argparse
import collections
import os
import pathlib
import pickle
import sys
import zipfile

import dill
import numpy as np
import safetensors.torch
import torch

DTYPES = [
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "complex64",
    "uint16",
]  # fmt: skip


def kinds():
    """Tensors of all types and layouts."""
    base = torch.arange(24, dtype=torch.float32)
    tensors = {name: torch.arange(6).to(getattr(torch, name)).reshape(2, 3) for name in DTYPES}
    return {
        **tensors,
        "plain": base.reshape(4, 6),
        "offset": base[5:11],
        "transposed": base.reshape(4, 6).t(),
        "strided": base.reshape(4, 6)[1::2, ::3],
        "permuted": base.reshape(2, 3, 4).permute(2, 0, 1),
        "channels_last": base.reshape(1, 2, 3, 4).contiguous(memory_format=torch.channels_last),
        "expanded": torch.tensor([7.0]).expand(2, 3),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(base[:3].clone()),
    }


def network():
    head = [torch.nn.Flatten(), torch.nn.Linear(8, 2)]
    return torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), *head)


def filled(net):
    """Gives every tensor of a network the values 0.5, 1.5, ... in order."""
    for tensor in net.state_dict().values():
        tensor.copy_((torch.arange(tensor.numel()) + 0.5).reshape(tensor.shape))
    return net


def training():
    """A checkpoint after one step of training by DataParallel, with what scripts save beside the weights."""
    net = torch.nn.DataParallel(network())
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 3])
    net(torch.ones(2, 1, 4, 4)).sum().backward()
    optimizer.step()
    scheduler.step()
    filled(net)
    return {
        "epoch": 3,
        "state_dict": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "args": argparse.Namespace(lr=0.1, data=pathlib.PurePosixPath("/data/cifar"), nested=argparse.Namespace(a=1)),
        "best": np.float32(0.75),
        "loss": np.float64(1.25),
        "history": np.arange(6, dtype=np.float32).reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
        "names": np.array(["a", "bc"]),
        "seen": {1, 2},
        "frozen": frozenset({"x"}),
        "counts": collections.Counter("aab"),
        "groups": collections.defaultdict(list, {"a": [1]}),
        "raw": b"\x00\xff",
        "bytes": bytearray(b"\x01\xfe"),
        "complex": 1 + 2j,
        "big": 2**70,
        "device": torch.device("cuda", 1),
        "size": torch.Size([1, 2]),
        "dtype": torch.bfloat16,
        "version": torch.__version__,
        "none": None,
    }


def deflated(source, target):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr("other/" + name.partition("/")[2], old.read(name))


def main(folder):
    os.chdir(folder)
    torch.manual_seed(0)
    torch.save(kinds(), "kinds.pt")
    torch.save(kinds(), "kinds_legacy.pt", _use_new_zipfile_serialization=False)
    torch.save(kinds(), "kinds_protocol5.pt", pickle_protocol=5)
    with open("kinds.pkl", "wb") as file:
        pickle.dump(kinds(), file)
    contiguous = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in kinds().items()}
    del contiguous["uint16"], contiguous["complex64"]  # safetensors 0.4 does not know them
    safetensors.torch.save_file(contiguous, "kinds.safetensors")
    deflated("kinds.pt", "kinds_deflated.pt")
    torch.serialization.set_crc32_options(False)
    torch.save(kinds(), "kinds_no_checksums.pt")
    torch.serialization.set_crc32_options(True)

    torch.save(training(), "training.pt")
    torch.save(training(), "training_legacy.pt", _use_new_zipfile_serialization=False)
    torch.save(training(), "training_protocol5.pt", pickle_protocol=5)

    torch.save(network(), "whole_model.pt")
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), "script.pt")
    torch.save({"weight": torch.eye(2).to_sparse()}, "sparse.pt")
    torch.save({"weight": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, "quantised.pt")
    torch.save({"weight": torch.ones(2, device="meta")}, "meta.pt")
    torch.save({"weight": torch.ones(2, dtype=torch.complex64).conj()}, "conjugated.pt")
    schedule = {"model": filled(network()).state_dict(), "schedule": lambda epoch: 0.1 * epoch}
    torch.save(schedule, "dill.pt", pickle_module=dill)


if __name__ == "__main__":
    main(sys.argv[1])
