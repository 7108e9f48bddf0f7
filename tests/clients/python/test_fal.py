"""PyPI `fal_client`, unmodified: version 1.0 and version 0.9. It speaks TLS only; its hosts come from the environment."""

import asyncio
import hashlib
import http.server
import importlib
import importlib.metadata
import json
import os
import tempfile
import threading
import time
import unittest
import urllib.request

import httpx
from common import KEY, TLS_URL, URL, picture, size_and_format

HOST = TLS_URL.removeprefix("https://")
os.environ["FAL_KEY"] = KEY
os.environ["FAL_RUN_HOST"] = HOST + "/fal/run"
os.environ["FAL_QUEUE_RUN_HOST"] = HOST + "/fal/queue"
os.environ["SSL_CERT_FILE"] = os.environ["DARKROOM_CA"]

import fal_client  # noqa: E402  (reads the environment when it is imported)

# What no variable changes: where files go, and in version 0.9 where the queue is.
module = importlib.import_module("fal_client.client")
module.REST_URL = TLS_URL + "/fal/rest"
module.CDN_URL = TLS_URL + "/fal/cdn"
if "FAL_QUEUE_RUN_HOST" not in open(module.__file__).read():
    if hasattr(module, "QUEUE_URL_FORMAT"):
        module.QUEUE_URL_FORMAT = TLS_URL + "/fal/queue/"
    if hasattr(module, "FAL_QUEUE_RUN_HOST"):
        module.FAL_QUEUE_RUN_HOST = HOST + "/fal/queue"

APP = "fal-ai/flux/krea"
SMALL = {"width": 96, "height": 64}
LONG = {"prompt": "a fox", "image_size": {"width": 1024, "height": 1024}, "num_inference_steps": 50, "num_images": 4}


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url) as answer:
        assert answer.headers["content-type"].startswith("image/"), answer.headers
        return answer.read()


def ask(**more) -> dict:
    return {"prompt": "a red fox", "image_size": SMALL, "num_inference_steps": 4, **more}


class Receiver(http.server.BaseHTTPRequestHandler):
    """Keeps what webhooks say."""

    seen: list = []

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        Receiver.seen.append((dict(self.headers.items()), body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


class Run(unittest.TestCase):
    def test_text(self):
        result = fal_client.run(APP, arguments=ask(seed=17454220438242315174))
        self.assertEqual(set(result), {"images", "timings", "seed", "has_nsfw_concepts", "prompt"})
        self.assertEqual((result["seed"], result["prompt"]), (17454220438242315174, "a red fox"))
        self.assertEqual(result["has_nsfw_concepts"], [False])
        image = result["images"][0]
        self.assertEqual((image["width"], image["height"], image["content_type"]), (96, 64, "image/jpeg"))
        self.assertEqual(size_and_format(fetch(image["url"])), ((96, 64), "JPEG"))

    def test_a_seed_is_chosen_and_repeats(self):
        first = fal_client.run(APP, arguments=ask(output_format="png"))
        self.assertLess(first["seed"], 2**32)
        again = fal_client.run(APP, arguments=ask(output_format="png", seed=first["seed"], sync_mode=True))
        with urllib.request.urlopen(again["images"][0]["url"]) as data:  # a data URI
            self.assertEqual(data.read(), fetch(first["images"][0]["url"]))

    def test_four_pictures_have_seeds_of_their_own(self):
        four = fal_client.run(APP, arguments=ask(num_images=4, seed=7, output_format="png"))
        files = [fetch(image["url"]) for image in four["images"]]
        self.assertEqual((len(set(files)), len(four["has_nsfw_concepts"])), (4, 4))
        third = fal_client.run(APP, arguments=ask(seed=9, output_format="png"))
        self.assertEqual(fetch(third["images"][0]["url"]), files[2])

    def test_presets(self):
        result = fal_client.run(APP, arguments={"prompt": "a fox", "num_inference_steps": 2})
        self.assertEqual(size_and_format(fetch(result["images"][0]["url"]))[0], (1024, 768))

    def test_from_a_picture(self):
        url = fal_client.encode(picture((160, 96)), "image/png")
        result = fal_client.run(APP + "/image-to-image", arguments={
            "prompt": "a boat", "image_url": url, "strength": 0.6, "num_inference_steps": 10})
        self.assertEqual(size_and_format(fetch(result["images"][0]["url"]))[0], (160, 96))

    def test_redux(self):
        url = fal_client.encode(picture(), "image/png")
        result = fal_client.run(APP + "/redux", arguments={"image_url": url, "image_size": SMALL, "num_inference_steps": 4})
        self.assertEqual((result["prompt"], size_and_format(fetch(result["images"][0]["url"]))[0]), ("", (96, 64)))

    def test_asynchronous(self):
        result = asyncio.run(fal_client.AsyncClient(key=KEY).run(APP, arguments=ask()))
        self.assertEqual(len(result["images"]), 1)


class Errors(unittest.TestCase):
    def fails(self, status, app=APP, arguments=None):
        with self.assertRaises(Exception) as raised:
            fal_client.run(app, arguments=arguments)
        error = raised.exception
        cause = error if hasattr(error, "response") else error.__cause__
        self.assertEqual(cause.response.status_code, status, error)
        return cause.response

    def test_wrong_values(self):
        detail = self.fails(422, arguments=ask(num_images=5)).json()["detail"]
        self.assertEqual((detail[0]["loc"], detail[0]["type"]), (["body", "num_images"], "less_than_equal"))
        self.assertEqual(self.fails(422, arguments={}).json()["detail"][0]["type"], "missing")

    def test_what_is_not_there(self):
        self.assertIn("not found", self.fails(404, "fal-ai/nothing", {}).json()["detail"])

    def test_a_picture_that_may_not_be_fetched(self):
        for address in ["http://169.254.169.254/latest/meta-data", "https://169.254.169.254/x.png"]:
            detail = self.fails(422, APP + "/image-to-image", {"prompt": "x", "image_url": address}).json()["detail"]
            self.assertEqual(detail[0]["loc"], ["body", "image_url"])

    def test_a_picture_that_is_none(self):
        url = fal_client.encode(b"no picture at all", "image/png")
        detail = self.fails(422, APP + "/image-to-image", {"prompt": "x", "image_url": url}).json()["detail"]
        self.assertEqual(detail[0]["loc"], ["body", "image_url"])

    def test_a_wrong_key(self):
        with self.assertRaises(Exception) as raised:
            fal_client.SyncClient(key="wrong").run(APP, arguments=ask())
        self.assertIn("401", str(getattr(raised.exception, "status_code", raised.exception)))


class Queue(unittest.TestCase):
    def test_subscribe_with_logs(self):
        seen, ids = [], []
        result = fal_client.subscribe(APP, arguments=ask(seed=42, num_inference_steps=28), with_logs=True,
                                      on_enqueue=ids.append, on_queue_update=seen.append)
        self.assertEqual((len(result["images"]), result["seed"]), (1, 42))
        self.assertIsInstance(seen[-1], fal_client.Completed)
        self.assertIn("Using seed: 42", [line["message"] for line in seen[-1].logs])
        self.assertGreater(seen[-1].metrics["inference_time"], 0)
        self.assertEqual(len(ids), 1)

    def test_submit_status_result_by_name(self):
        handle = fal_client.submit(APP, arguments=ask())
        self.assertEqual(handle.get()["prompt"], "a red fox")
        self.assertIsInstance(fal_client.status(APP, handle.request_id, with_logs=True), fal_client.Completed)
        self.assertEqual(fal_client.result(APP, handle.request_id)["prompt"], "a red fox")

    def test_places_in_line_and_cancel(self):
        first = fal_client.submit(APP, arguments=LONG)
        second = fal_client.submit(APP, arguments=ask())
        for _ in range(100):
            if isinstance(first.status(), fal_client.InProgress):
                break
            time.sleep(0.05)
        waiting = second.status()
        self.assertIsInstance(waiting, fal_client.Queued)
        self.assertEqual(waiting.position, 0)
        started = time.monotonic()
        first.cancel()
        self.assertEqual(len(second.get()["images"]), 1)
        self.assertLess(time.monotonic() - started, 10)
        with self.assertRaises(Exception) as raised:
            first.get()
        response = getattr(raised.exception, "response", None) or raised.exception.__cause__.response
        self.assertEqual(response.status_code, 499)

    def test_what_is_wrong_is_said_in_the_result(self):
        handle = fal_client.submit(APP, arguments=ask(num_inference_steps=51))
        with self.assertRaises(Exception) as raised:
            handle.get()
        response = getattr(raised.exception, "response", None) or raised.exception.__cause__.response
        self.assertEqual(response.json()["detail"][0]["loc"], ["body", "num_inference_steps"])

    def test_asynchronous(self):
        async def go():
            handle = await fal_client.AsyncClient(key=KEY).submit(APP, arguments=ask())
            states = [type(event).__name__ async for event in handle.iter_events(with_logs=True)]
            return states, await handle.get()

        states, result = asyncio.run(go())
        self.assertEqual((states[-1], len(result["images"])), ("Completed", 1))

    def test_status_stream(self):
        handle = fal_client.submit(APP, arguments=ask(seed=5))
        url = f"{TLS_URL}/fal/queue/fal-ai/flux/requests/{handle.request_id}/status/stream?logs=1"
        with httpx.stream("GET", url, headers={"Authorization": "Key " + KEY}, verify=httpx.create_ssl_context(), timeout=60) as answer:
            events = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
        self.assertEqual(events[-1]["status"], "COMPLETED")
        lines = [line["message"] for event in events for line in event.get("logs") or []]
        self.assertEqual(lines.count("Using seed: 5"), 1)

    def test_codes(self):
        handle = fal_client.submit(APP, arguments=LONG)
        base = f"{TLS_URL}/fal/queue/fal-ai/flux/requests/{handle.request_id}"
        with httpx.Client(headers={"Authorization": "Key " + KEY}, verify=httpx.create_ssl_context()) as plain:
            self.assertEqual(plain.get(base + "/status").status_code, 202)
            self.assertEqual(plain.get(base).status_code, 400)
            answer = plain.put(base + "/cancel")
            self.assertEqual((answer.status_code, answer.json()["status"]), (202, "CANCELLATION_REQUESTED"))
            while plain.get(base + "/status").status_code == 202:
                time.sleep(0.05)
            answer = plain.put(base + "/cancel")
            self.assertEqual((answer.status_code, answer.json()["status"]), (400, "ALREADY_COMPLETED"))
            self.assertEqual(plain.put(base[:-3] + "000/cancel").status_code, 404)


class Streams(unittest.TestCase):
    def test_stream(self):
        events = list(fal_client.stream(APP, arguments=ask(num_inference_steps=20, prompt="Füchse 🦊")))
        self.assertGreater(len(events), 2)
        preview = events[0]["images"][0]["url"]
        with urllib.request.urlopen(preview) as data:
            self.assertEqual(size_and_format(data.read())[1], "JPEG")
        self.assertEqual(events[-1]["prompt"], "Füchse 🦊")
        self.assertEqual(size_and_format(fetch(events[-1]["images"][0]["url"]))[0], (96, 64))

    @unittest.skipUnless(hasattr(fal_client, "realtime"), "this version has no realtime")
    def test_realtime(self):
        for use_jwt in [False, True]:
            with fal_client.realtime(APP, use_jwt=use_jwt) as connection:
                for seed in [1, 2]:
                    connection.send(ask(seed=seed, output_format="png"))
                    result = connection.recv()
                    self.assertEqual(result["seed"], seed)
                    self.assertTrue(result["images"][0]["url"].startswith("data:image/png;base64,"))
                connection.send({"prompt": "x", "num_images": 9})
                with self.assertRaises(Exception):
                    connection.recv()


class Uploads(unittest.TestCase):
    def check(self, url, data):
        result = fal_client.run(APP + "/image-to-image", arguments={"prompt": "x", "image_url": url, "num_inference_steps": 10})
        self.assertEqual(size_and_format(fetch(result["images"][0]["url"]))[0], (160, 96))
        self.assertEqual(fetch(url), data)

    def test_upload(self):
        data = picture((160, 96))
        self.check(fal_client.upload(data, "image/png"), data)

    def test_upload_file(self):
        data = picture((160, 96))
        with tempfile.NamedTemporaryFile(suffix=".png") as file:
            file.write(data)
            file.flush()
            self.check(fal_client.upload_file(file.name), data)

    @unittest.skipUnless(hasattr(module, "StorageSettings"), "this version has no lifetimes")
    def test_how_long_uploads_are_kept(self):
        soon = module.StorageSettings(expires_in=120)
        urls = [fal_client.upload(b"x" * 50, "text/plain", file_name="a.txt", repository=repository, lifecycle=soon)
                for repository in ["fal_v3", "fal"]]
        threshold, module.MULTIPART_THRESHOLD = module.MULTIPART_THRESHOLD, 10
        self.addCleanup(setattr, module, "MULTIPART_THRESHOLD", threshold)
        urls.append(fal_client.upload(b"x" * 50, "text/plain", file_name="a.txt", lifecycle=soon))
        for url in urls:
            with urllib.request.urlopen(url) as answer:
                age = int(answer.headers["cache-control"].split("max-age=")[1].split(",")[0])
            self.assertLessEqual(age, 120, url)

    def test_upload_in_parts(self):
        multipart = getattr(module, "MultipartUpload", None)
        if multipart is None:
            self.skipTest("this version has no parts")
        data = picture((160, 96)) + b"\0" * 3000
        with tempfile.NamedTemporaryFile(suffix=".png") as file:
            file.write(data)
            file.flush()
            client = fal_client.SyncClient(key=KEY)
            manager = client._token_manager if hasattr(client, "_token_manager") else None
            try:
                url = multipart.save_file(file_path=file.name, client=client._client, token_manager=manager, chunk_size=1000,
                                          content_type="image/png", max_concurrency=2)
            except (TypeError, AttributeError) as error:
                self.skipTest(f"this version begins it in another way: {error}")
        if isinstance(url, tuple):
            url = url[0]
        self.check(url, data)


class Webhooks(unittest.TestCase):
    """As fal documents it for receivers: PyNaCl and the key from the JWKS."""

    def test_webhook(self):
        try:
            from nacl.exceptions import BadSignatureError
            from nacl.signing import VerifyKey
        except ImportError:
            self.skipTest("PyNaCl is not installed")
        import base64

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hook = f"http://127.0.0.1:{server.server_port}/hook?x=1"
        Receiver.seen.clear()
        good = fal_client.submit(APP, arguments=ask(), webhook_url=hook)
        bad = fal_client.submit(APP, arguments=ask(num_images=9), webhook_url=hook)
        for _ in range(300):
            if len(Receiver.seen) >= 2:
                break
            time.sleep(0.1)
        server.shutdown()
        with urllib.request.urlopen(URL + "/.well-known/jwks.json") as answer:
            keys = [VerifyKey(base64.urlsafe_b64decode(key["x"] + "=" * (-len(key["x"]) % 4))) for key in json.load(answer)["keys"]]
        told = {}
        for headers, body in Receiver.seen:
            headers = {name.lower(): value for name, value in headers.items()}
            timestamp = headers["x-fal-webhook-timestamp"]
            self.assertLess(abs(int(timestamp) - time.time()), 300)
            message = "\n".join([headers["x-fal-webhook-request-id"], headers["x-fal-webhook-user-id"], timestamp,
                                 hashlib.sha256(body).hexdigest()]).encode()
            signature = bytes.fromhex(headers["x-fal-webhook-signature"])
            keys[0].verify(message, signature)
            with self.assertRaises(BadSignatureError):
                keys[0].verify(message + b"x", signature)
            told[headers["x-fal-webhook-request-id"]] = json.loads(body)
        first, second = told[good.request_id], told[bad.request_id]
        self.assertEqual((first["status"], first["error"], len(first["payload"]["images"])), ("OK", None, 1))
        self.assertEqual((second["status"], second["error"]), ("ERROR", "Invalid status code: 422"))
        self.assertEqual(second["payload"]["detail"][0]["loc"], ["body", "num_images"])


if __name__ == "__main__":
    print("fal_client", importlib.metadata.version("fal_client"))
    unittest.main(verbosity=1)
