"""What the client scripts share: where the server is, and pictures to give."""

import io
import os

from PIL import Image

URL = os.environ["DARKROOM_URL"]  # http://127.0.0.1:PORT
TLS_URL = os.environ.get("DARKROOM_TLS_URL", "")  # https://localhost:PORT
KEY = os.environ["DARKROOM_KEY"]


def size_and_format(data: bytes) -> tuple[tuple[int, int], str]:
    """Decodes all of a picture."""
    picture = Image.open(io.BytesIO(data))
    picture.load()
    return picture.size, picture.format


def picture(size: tuple[int, int] = (96, 96), kind: str = "PNG", colour=(200, 40, 30)) -> bytes:
    """A picture to give: a coloured square on white."""
    image = Image.new("RGB", size, "white")
    image.paste(colour, (size[0] // 4, size[1] // 4, 3 * size[0] // 4, 3 * size[1] // 4))
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def mask(size: tuple[int, int] = (96, 96)) -> bytes:
    """A mask whose middle is transparent: that is painted anew."""
    image = Image.new("RGBA", size, (0, 0, 0, 255))
    image.paste((0, 0, 0, 0), (size[0] // 4, size[1] // 4, 3 * size[0] // 4, 3 * size[1] // 4))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
