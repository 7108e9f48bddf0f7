"""PyPI `openai`, unmodified: version 3 and version 1."""

import base64
import time
import unittest
import urllib.request

import httpx
import openai
from common import KEY, URL, mask, picture, size_and_format

client = openai.OpenAI(base_url=URL + "/v1", api_key=KEY)
MODEL = "flux.1-krea-dev"


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url) as answer:
        assert answer.headers["content-type"].startswith("image/"), answer.headers
        return answer.read()


class Generate(unittest.TestCase):
    def test_url(self):
        answer = client.images.generate(model=MODEL, prompt="a red apple")
        self.assertEqual(size_and_format(fetch(answer.data[0].url)), ((1024, 1024), "PNG"))
        self.assertEqual(answer.data[0].revised_prompt, "a red apple")
        self.assertTrue(answer._request_id)

    def test_base64_shape_and_format(self):
        for kind in ["png", "jpeg", "webp", "gif", "avif"]:
            answer = client.images.generate(
                model=MODEL, prompt="a red apple", size="16:9", response_format="b64_json",
                extra_body={"output_format": kind, "num_inference_steps": 4})
            data = base64.b64decode(answer.data[0].b64_json)
            self.assertEqual(size_and_format(data), ((1365, 768), kind.upper()))

    def test_every_row_of_the_table(self):
        rows = {"1:1": (1024, 1024), "4:3": (1183, 887), "3:4": (887, 1182), "4:5": (916, 1145), "5:4": (1145, 916),
                "2:3": (836, 1254), "3:2": (1254, 836), "9:16": (768, 1365), "9:21": (670, 1564), "21:9": (1563, 670)}
        for shape, size in rows.items():
            answer = client.images.generate(model=MODEL, prompt="a key", response_format="b64_json", extra_body={
                "aspect_ratio": shape, "resolution": "4K", "num_inference_steps": 2, "output_format": "jpeg"})
            self.assertEqual(size_and_format(base64.b64decode(answer.data[0].b64_json))[0], size)

    def test_four_pictures_have_seeds_of_their_own(self):
        def make(n, seed):
            answer = client.images.generate(model=MODEL, prompt="a blue cup", n=n, size="256x256",
                                            response_format="b64_json", extra_body={"seed": seed, "steps": 6})
            return [(picture.seed, picture.b64_json) for picture in answer.data]

        four = make(4, 40)
        self.assertEqual([seed for seed, _ in four], [40, 41, 42, 43])
        self.assertEqual(len({data for _, data in four}), 4)
        self.assertEqual(make(1, 42), [four[2]])

    def test_quality_makes_files_smaller(self):
        def length(quality):
            answer = client.images.generate(model=MODEL, prompt="a tree", size="512x512", response_format="b64_json",
                                            extra_body={"output_format": "jpeg", "output_compression": quality, "seed": 1, "steps": 4})
            return len(answer.data[0].b64_json)

        self.assertLess(length(10), length(95))

    def test_unknown_parameters_do_no_harm(self):
        client.images.generate(model=MODEL, prompt="a key", size="64x64", quality="hd", style="vivid", user="me",
                               extra_body={"no_such_thing": {"a": 1}, "steps": 2, "go_fast": True, "sync_mode": False})

    def test_stream(self):
        make = lambda **more: client.images.generate(model=MODEL, prompt="a fox", size="128x128",
                                                     extra_body={"seed": 5, "steps": 20}, **more)
        events = list(make(stream=True, partial_images=2))
        kinds = [event.type for event in events]
        self.assertEqual(kinds, ["image_generation.partial_image"] * 2 + ["image_generation.completed"])
        self.assertEqual([event.partial_image_index for event in events[:2]], [0, 1])
        for event in events:
            self.assertEqual(size_and_format(base64.b64decode(event.b64_json)), ((128, 128), "PNG"))
        self.assertEqual(events[-1].b64_json, make(response_format="b64_json").data[0].b64_json)


class Edit(unittest.TestCase):
    def test_a_picture_keeps_its_size(self):
        answer = client.images.edit(model=MODEL, prompt="a red apple", image=("a.png", picture((200, 120))),
                                    response_format="b64_json", extra_body={"strength": 0.5, "steps": 6})
        self.assertEqual(size_and_format(base64.b64decode(answer.data[0].b64_json))[0], (200, 120))

    def test_a_list_a_mask_and_a_size(self):
        for image in [[("a.jpg", picture(kind="JPEG"))], [("a.webp", picture(kind="WEBP")), ("b.png", picture())]]:
            answer = client.images.edit(model=MODEL, prompt="a red apple", image=image, mask=("m.png", mask()), size="128x128",
                                        n=2, response_format="b64_json", extra_body={"steps": 6})
            self.assertEqual(len(answer.data), 2)
            self.assertEqual(size_and_format(base64.b64decode(answer.data[1].b64_json))[0], (128, 128))

    def test_bytes_without_a_name(self):
        answer = client.images.edit(model=MODEL, prompt="a red apple", image=(None, picture()), mask=(None, mask()),
                                    extra_body={"steps": 6})
        self.assertEqual(answer.size, "96x96")

    def test_a_stored_file_that_is_not_there(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            client.post("/images/edits", cast_to=object, body={"prompt": "x", "images": [{"file_id": "file-1"}]})
        self.assertEqual((caught.exception.param, caught.exception.code), ("images", "invalid_value"))

    def test_stream(self):
        events = list(client.images.edit(model=MODEL, prompt="a red apple", image=("a.png", picture()), stream=True, partial_images=1))
        self.assertEqual([event.type for event in events], ["image_edit.partial_image", "image_edit.completed"])

    def test_a_variation_needs_no_prompt(self):
        if not hasattr(client.images, "create_variation"):
            self.skipTest("this version has no variations")
        answer = client.images.create_variation(image=("a.png", picture()), response_format="b64_json", size="256x256")
        self.assertEqual(size_and_format(base64.b64decode(answer.data[0].b64_json))[0], (256, 256))


class Errors(unittest.TestCase):
    def refused(self, kind, **arguments):
        with self.assertRaises(kind) as caught:
            client.images.generate(**{"model": MODEL, "prompt": "x", **arguments})
        return caught.exception

    def test_each_has_its_exception(self):
        error = self.refused(openai.BadRequestError, size="big")
        self.assertEqual((error.param, error.code, error.type), ("size", "invalid_value", "invalid_request_error"))
        self.assertEqual(self.refused(openai.BadRequestError, n=11).param, "n")
        self.assertEqual(self.refused(openai.BadRequestError, size="3000x3000").param, "size")
        self.assertEqual(self.refused(openai.BadRequestError, prompt="").code, "missing_required_parameter")
        self.assertEqual(self.refused(openai.NotFoundError, model="no-such-model").code, "model_not_found")

    def test_a_picture_that_is_none(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            client.images.edit(model=MODEL, prompt="x", image=("a.png", b"not a picture"))
        self.assertEqual((caught.exception.code, caught.exception.param), ("invalid_image_file", "image"))

    def test_a_route_that_is_not_there(self):
        for ask, status, code in [(client.models.delete, 405, "method_not_supported"), (client.models.retrieve, 404, "model_not_found")]:
            with self.assertRaises(openai.APIStatusError) as caught:
                ask("some/model" if status == 404 else MODEL)
            error = caught.exception
            self.assertEqual((error.status_code, error.type, error.code), (status, "invalid_request_error", code))
        with self.assertRaises(openai.NotFoundError) as caught:
            client.embeddings.create(model=MODEL, input="x")
        self.assertEqual(caught.exception.type, "invalid_request_error")

    def test_a_wrong_key(self):
        with self.assertRaises(openai.AuthenticationError) as caught:
            openai.OpenAI(base_url=URL + "/v1", api_key="wrong", max_retries=0).models.list()
        self.assertEqual(caught.exception.code, "invalid_api_key")


class Other(unittest.TestCase):
    def test_models(self):
        self.assertIn(MODEL, [model.id for model in client.models.list()])
        self.assertEqual(client.models.retrieve(MODEL).object, "model")

    def test_the_gateways_mount(self):
        gateway = openai.OpenAI(base_url=URL + "/openai/v1", api_key=KEY)
        self.assertTrue(gateway.images.generate(model=MODEL, prompt="a key", size="64x64", extra_body={"steps": 2}).data[0].url)

    def test_who_goes_away_stops_the_work(self):
        impatient = openai.OpenAI(base_url=URL + "/v1", api_key=KEY, timeout=0.7, max_retries=0)
        with self.assertRaises(openai.APITimeoutError):
            impatient.images.generate(model=MODEL, prompt="a fox", n=10, size="2048x2048", extra_body={"steps": 50})
        # The machine is free again long before ten pictures were made.
        started = time.monotonic()
        client.images.generate(model=MODEL, prompt="a key", size="64x64", extra_body={"steps": 2})
        alone = time.monotonic() - started
        self.assertLess(alone, 5)

    def test_a_body_that_is_no_json(self):
        answer = httpx.post(URL + "/v1/images/generations", content=b"{", headers={"authorization": "Bearer " + KEY})
        self.assertEqual((answer.status_code, answer.json()["error"]["param"]), (400, "body"))


if __name__ == "__main__":
    unittest.main(verbosity=2)
