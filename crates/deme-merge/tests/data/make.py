"""Writes the PyTorch files of this folder (torch 2.x): `python make.py`, in this folder.

Every accepted file holds the tensors of `expected.safetensors`; the others must be refused.
"""

import collections
import os
import pickle
import zipfile

import torch
from safetensors.torch import save_file

torch.manual_seed(0)
grid = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4) / 8 - 1

tensors = collections.OrderedDict(
    f32=grid,
    transposed=grid.permute(2, 0, 1),  # strides
    sliced=grid[:, 1:, ::2],  # offset and strides
    expanded=torch.tensor([[1.5], [2.5]]).expand(2, 3),  # stride 0
    scalar=torch.tensor(3.25),
    empty=torch.zeros(0, 4),
    f64=grid[0].double() / 3,
    f16=(grid[0] / 3).half(),
    bf16=(grid[0] / 3).bfloat16(),
    i64=torch.tensor([-(2**40), 0, 7]),
    i32=torch.tensor([[-3], [9]], dtype=torch.int32),
    i16=torch.tensor([-300, 300], dtype=torch.int16),
    i8=torch.tensor([-3, 3], dtype=torch.int8),
    u8=torch.tensor([3, 250], dtype=torch.uint8),
    bool=torch.tensor([True, False]),
    parameter=torch.nn.Parameter(grid[1] * 2),
)
tensors["shared"] = tensors["parameter"].detach()[0]  # one storage, two tensors
expected = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
save_file(expected, "expected.safetensors")

torch.save(tensors, "zip.pth")
torch.save(tensors, "legacy.pth", _use_new_zipfile_serialization=False)
torch.save(dict(tensors), "zip_protocol4.pth", pickle_protocol=4)
torch.save(dict(tensors), "legacy_protocol4.pth", _use_new_zipfile_serialization=False, pickle_protocol=4)
nested = {"epoch": 3, "lr": 1e-3, "args": {"name": "x", "sizes": [1, 2], "seen": {1}}, "state_dict": tensors}
torch.save(nested, "nested.ckpt")
module = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.GroupNorm(1, 2))
torch.save(module.state_dict(), "module.bin")  # an OrderedDict with a _metadata attribute
save_file(module.state_dict(), "module.safetensors")


class Attack:
    def __reduce__(self):
        return os.system, ("echo this must never run",)


attack = {"weight": torch.zeros(2), "attack": Attack()}
torch.save(attack, "attack_zip.pth")
torch.save(attack, "attack_legacy.pth", _use_new_zipfile_serialization=False)
torch.save(module, "refused_module.pth", _use_new_zipfile_serialization=False)
torch.save({"epoch": 3}, "no_tensors.pth")
torch.save([torch.zeros(2)], "list.pth")
with open("plain.pkl", "wb") as file:
    pickle.dump({"a": 1}, file)
with zipfile.ZipFile("no_pickle.pth", "w") as archive:
    archive.writestr("archive/readme", "nothing here")
with zipfile.ZipFile("zip.pth") as source, zipfile.ZipFile("deflated.pth", "w", zipfile.ZIP_DEFLATED) as target:
    for name in source.namelist():
        target.writestr(name, source.read(name))
with zipfile.ZipFile("zip.pth") as source, zipfile.ZipFile("big_endian.pth", "w") as target:
    for name in source.namelist():
        target.writestr(name, b"big" if name.endswith("byteorder") else source.read(name))
with zipfile.ZipFile("zip.pth") as source, zipfile.ZipFile("missing_storage.pth", "w") as target:
    for name in source.namelist():
        if not name.endswith("data/0"):
            target.writestr(name, source.read(name))
with zipfile.ZipFile("zip.pth") as source, zipfile.ZipFile("short_storage.pth", "w") as target:
    for name in source.namelist():
        target.writestr(name, source.read(name)[:8] if name.endswith("data/0") else source.read(name))
