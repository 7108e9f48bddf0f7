"""Pictures as Pillow and OpenCV treat them: resizing, decoding, edges.

Writes `pictures/resize.safetensors` and `pictures/canny.safetensors`, and small files in many formats beside
`pictures/decoded.safetensors`, which holds what Pillow makes of each of them (turned upright, as RGB, and alpha apart).
"""

import argparse
import io
import struct
from pathlib import Path

from common import FIXTURES, save

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image, ImageOps  # noqa: E402

# XMP with IPTC's mark that a model made the picture.
MARK = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">'
    b"<Iptc4xmpExt:DigitalSourceType>http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    b"</Iptc4xmpExt:DigitalSourceType></rdf:Description></rdf:RDF></x:xmpmeta>"
)

FILTERS = {"lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC}


def scene(width, height, seed, noise=24):
    """A picture with flat parts, slopes, hard edges and some noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    red = 255 * x / max(width - 1, 1)
    green = 128 + 100 * np.sin(x / 5 + y / 7)
    blue = np.where((x - width / 2) ** 2 + (y - height / 2) ** 2 < (min(width, height) / 3) ** 2, 220, 40)
    picture = np.stack([red, green, blue], -1)
    picture[height // 4 : height // 2, width // 5 : width // 3] = [250, 10, 10]
    picture += rng.normal(0, noise, picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8)


def resized():
    tensors = {}
    for width, height, sizes in [
        (37, 23, [(37, 23), (16, 16), (64, 48), (37, 50), (11, 23), (1, 1), (120, 5)]),
        (64, 48, [(32, 24), (63, 47), (96, 16), (5, 61)]),
        (3, 2, [(17, 9), (2, 2), (1, 7)]),
        (1, 1, [(5, 3)]),
    ]:
        name = f"{width}x{height}"
        pixels = scene(width, height, width)
        tensors[f"in.{name}"] = torch.from_numpy(pixels)
        for filter, resample in FILTERS.items():
            for size in sizes:
                out = Image.fromarray(pixels).resize(size, resample)
                tensors[f"{filter}.{name}.{size[0]}x{size[1]}"] = torch.from_numpy(np.array(out))
    return tensors


def edges():
    import cv2

    tensors = {}
    for i, (width, height, noise) in enumerate([(64, 48, 4), (61, 37, 30), (17, 90, 60), (5, 4, 90), (1, 9, 90), (2, 2, 90)]):
        pixels = scene(width, height, 100 + i, noise)
        tensors[f"in.{i}"] = torch.from_numpy(pixels)
        for low, high in [(50, 200), (100, 300), (200, 40)]:
            tensors[f"out.{i}.{low}.{high}"] = torch.from_numpy(cv2.Canny(pixels, low, high))
    return tensors, cv2.__version__


def png_bytes(image, **options):
    out = io.BytesIO()
    image.save(out, "PNG", **options)
    return out.getvalue()


def png16(pixels):
    """A 16-bit RGB(A) PNG, which Pillow cannot write."""
    import zlib

    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 16, 6 if channels == 4 else 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def files():
    """Name → bytes of a file."""
    pixels = scene(26, 19, 7, noise=2)
    picture = Image.fromarray(pixels)
    alpha = np.linspace(0, 255, 26 * 19).reshape(19, 26).astype(np.uint8)
    rgba = Image.fromarray(np.dstack([pixels, alpha]))
    out = {}

    def add(name, image, format, **options):
        stream = io.BytesIO()
        image.save(stream, format, **options)
        out[name] = stream.getvalue()

    add("rgb.png", picture, "PNG")
    add("rgba.png", rgba, "PNG")
    add("grey.png", picture.convert("L"), "PNG")
    add("grey_alpha.png", rgba.convert("LA"), "PNG")
    add("palette.png", picture.quantize(16), "PNG")
    palette = picture.quantize(16)
    add("palette_transparent.png", palette, "PNG", transparency=3)
    add("one_bit.png", picture.convert("1"), "PNG")
    add("animated.png", picture, "PNG", save_all=True, append_images=[ImageOps.mirror(picture)])
    wide = pixels.astype(np.uint16) * 257 + 100
    out["rgb16.png"] = png16(np.minimum(wide, 65535))
    add("baseline.jpg", picture, "JPEG", quality=95, subsampling=0)
    add("progressive.jpg", picture, "JPEG", quality=90, progressive=True)
    add("grey.jpg", picture.convert("L"), "JPEG", quality=95)
    inks = [255 - pixels[..., 0], 255 - pixels[..., 1], 255 - pixels[..., 2], alpha // 3]
    add("cmyk.jpg", Image.merge("CMYK", [Image.fromarray(ink) for ink in inks]), "JPEG", quality=95)
    # The same planes, said to be YCCK: Pillow cannot write such a file, but reads it.
    at = out["cmyk.jpg"].index(b"Adobe") + 11
    out["ycck.jpg"] = out["cmyk.jpg"][:at] + b"\2" + out["cmyk.jpg"][at + 1 :]
    add("lossless.webp", picture, "WEBP", lossless=True)
    add("alpha.webp", rgba, "WEBP", lossless=True, exact=True)
    add("lossy.webp", picture, "WEBP", quality=95)
    add("animated.webp", picture, "WEBP", save_all=True, append_images=[ImageOps.mirror(picture)], duration=100)
    add("interlaced.gif", picture.quantize(16), "GIF", interlace=True, comment=b"a comment")
    add("palette_transparent.gif", palette, "GIF", transparency=3, interlace=False)
    add("animated.gif", picture, "GIF", save_all=True, append_images=[ImageOps.mirror(picture)], duration=100)
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + "Steps: 3".encode("utf-16-be")
    add("described.avif", picture, "AVIF", xmp=MARK, exif=exif.tobytes(), quality=50)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        add(f"turned_{orientation}.jpg", picture, "JPEG", quality=95, subsampling=0, exif=exif)
    exif = Image.Exif()
    exif[0x0112] = 6
    add("turned_6.png", picture, "PNG", exif=exif)
    add("turned_6.webp", picture, "WEBP", lossless=True, exif=exif)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=FIXTURES / "pictures")
    args = parser.parse_args()
    save(args.out / "resize.safetensors", resized())
    tensors, version = edges()
    save(args.out / "canny.safetensors", tensors, opencv=version)
    decoded = {}
    for name, data in files().items():
        (args.out / name).write_bytes(data)
        if name.endswith(".avif"):  # only what it says is read
            continue
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            decoded[f"{name}.alpha"] = torch.from_numpy(np.array(image.getchannel("A")))
        decoded[name] = torch.from_numpy(np.array(image.convert("RGB")))
    save(args.out / "decoded.safetensors", decoded)


if __name__ == "__main__":
    main()
