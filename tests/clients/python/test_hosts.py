"""PyPI `fal_client`, `openai` and `replicate`, unmodified, with their own hosts: as on a machine where DNS leads the vendors' names
to this server, port 443, and its CA is trusted. `getaddrinfo` stands for DNS; names and certificates are checked as ever."""

import os
import socket
import unittest
import urllib.parse
import urllib.request

from common import KEY, TLS_URL, picture, size_and_format

for name in ("FAL_RUN_HOST", "FAL_QUEUE_RUN_HOST"):
    os.environ.pop(name, None)
os.environ["SSL_CERT_FILE"] = os.environ["DARKROOM_CA"]
os.environ["FAL_KEY"] = os.environ["REPLICATE_API_TOKEN"] = KEY

LED = set()
resolve = socket.getaddrinfo


def led(host, port, *more, **named):
    if str(port) in ("443", "https"):
        LED.add(host if isinstance(host, str) else host.decode())
        host, port = "127.0.0.1", urllib.parse.urlsplit(TLS_URL).port
    return resolve(host, port, *more, **named)


socket.getaddrinfo = led

import fal_client  # noqa: E402  (reads the environment when it is imported)
import openai  # noqa: E402
import replicate  # noqa: E402

APP = "fal-ai/flux/krea"
ASK = {"prompt": "a red fox", "image_size": {"width": 96, "height": 64}, "num_inference_steps": 4}


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url) as answer:
        return answer.read()


class Hosts(unittest.TestCase):
    def test_fal(self):
        result = fal_client.subscribe(APP, arguments=ASK, with_logs=True)
        self.assertTrue(result["images"][0]["url"].startswith("https://"))
        self.assertEqual(size_and_format(fetch(result["images"][0]["url"])), ((96, 64), "JPEG"))
        self.assertEqual(len(list(fal_client.stream(APP, arguments=ASK))[-1]["images"]), 1)
        data = picture((160, 96))
        url = fal_client.upload(data, "image/png")
        self.assertEqual(fetch(url), data)
        again = fal_client.run(APP + "/image-to-image", arguments={"prompt": "x", "image_url": url, "num_inference_steps": 10})
        self.assertEqual(size_and_format(fetch(again["images"][0]["url"]))[0], (160, 96))
        self.assertLessEqual({"fal.run", "queue.fal.run", "rest.fal.ai", "v3.fal.media"}, LED)

    def test_fal_realtime(self):
        for use_jwt in [False, True]:
            with fal_client.realtime(APP, use_jwt=use_jwt) as connection:
                for seed in [1, 2]:
                    connection.send({**ASK, "seed": seed})
                    result = connection.recv()
                    self.assertEqual(result["seed"], seed)
                    self.assertEqual(size_and_format(fetch(result["images"][0]["url"]))[0], (96, 64))

    def test_openai(self):
        made = openai.OpenAI(api_key=KEY).images.generate(model="flux.1-krea-dev", prompt="a fox", size="64x64")
        self.assertEqual(size_and_format(fetch(made.data[0].url)), ((64, 64), "PNG"))
        self.assertIn("api.openai.com", LED)

    def test_replicate(self):
        ask = {"prompt": "a fox", "num_inference_steps": 4, "megapixels": "0.25"}
        output = replicate.Client(api_token=KEY, base_url="https://api.replicate.com").run("black-forest-labs/flux-krea-dev", input=ask)
        self.assertEqual(size_and_format(output[0].read()), ((512, 512), "WEBP"))
        self.assertIn("api.replicate.com", LED)


if __name__ == "__main__":
    unittest.main(verbosity=1)
