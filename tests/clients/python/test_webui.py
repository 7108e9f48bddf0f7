"""PyPI `webuiapi`, unmodified: AUTOMATIC1111's API."""

import io
import threading
import time
import unittest

import webuiapi
from common import KEY, URL, picture
from PIL import Image

PORT = int(URL.rsplit(":", 1)[1])
api = webuiapi.WebUIApi(host="127.0.0.1", port=PORT, username="user", password=KEY)


class WebUI(unittest.TestCase):
    def test_txt2img(self):
        result = api.txt2img(prompt="a red apple", seed=7, steps=8, width=320, height=192, batch_size=2, cfg_scale=7)
        self.assertEqual([image.size for image in result.images], [(320, 192)] * 2)
        self.assertEqual(result.info["all_seeds"], [7, 8])
        self.assertEqual(result.info["prompt"], "a red apple")

    def test_img2img(self):
        given = Image.open(io.BytesIO(picture((128, 128))))
        result = api.img2img(images=[given], prompt="a red apple", seed=1, steps=8, width=128, height=128, denoising_strength=0.6)
        self.assertEqual(result.image.size, (128, 128))

    def test_lists(self):
        self.assertTrue(api.get_options()["sd_model_checkpoint"])
        self.assertEqual(api.get_sd_models()[0]["model_name"], api.get_options()["sd_model_checkpoint"])
        self.assertEqual([sampler["name"] for sampler in api.get_samplers()], ["Euler"])
        self.assertEqual(api.get_scripts(), {"txt2img": [], "img2img": []})
        api.refresh_checkpoints()

    def test_progress_and_interrupt(self):
        self.assertEqual(api.get_progress()["progress"], 0)
        done = []
        work = threading.Thread(target=lambda: done.append(api.txt2img(prompt="a fox", steps=50, batch_size=30, width=1024, height=1024)))
        work.start()
        seen = 0.0
        for _ in range(200):
            seen = max(seen, api.get_progress()["progress"])
            if seen > 0:
                break
            time.sleep(0.02)
        self.assertGreater(seen, 0)
        api.interrupt()
        work.join(20)
        self.assertFalse(work.is_alive())


if __name__ == "__main__":
    unittest.main(verbosity=2)
