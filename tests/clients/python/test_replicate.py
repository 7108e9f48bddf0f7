"""PyPI `replicate`, unmodified: version 1.0 and the beta of 2.0."""

import asyncio
import http.server
import importlib.metadata
import io
import json
import os
import threading
import time
import unittest
import urllib.request

from common import KEY, TLS_URL, URL, picture, size_and_format

VERSION = importlib.metadata.version("replicate")
NEW = VERSION.startswith("2.")

os.environ["REPLICATE_API_TOKEN"] = KEY
os.environ["REPLICATE_BASE_URL"] = URL + "/v1" if NEW else URL

import replicate  # noqa: E402  (reads the environment when it is imported)

MODEL = "black-forest-labs/flux-krea-dev"
LONG = {"prompt": "a fox", "num_inference_steps": 50, "num_outputs": 4, "go_fast": False}


def ask(**more) -> dict:
    return {"prompt": "a red fox", "num_inference_steps": 4, "megapixels": "0.25", **more}


def client(base: str):
    """With another base than the module's own client."""
    if NEW:
        return replicate.Replicate(bearer_token=KEY, base_url=base + "/v1")
    return replicate.Client(api_token=KEY, base_url=base)


def status_of(error) -> int:
    return getattr(error, "status_code", None) or getattr(error, "status", None)


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
    def test_the_readme(self):
        output = replicate.run(MODEL, input=ask())
        self.assertIsInstance(output, list)
        self.assertEqual(size_and_format(output[0].read()), ((512, 512), "WEBP"))

    def test_over_tls_outputs_are_urls(self):
        output = client(TLS_URL).run(MODEL, input=ask())
        self.assertTrue(str(output[0].url).startswith(TLS_URL + "/files/"), output[0])
        self.assertEqual(size_and_format(output[0].read())[1], "WEBP")

    def test_formats_and_shapes(self):
        for kind, name, shape, size in [("png", "PNG", "16:9", (672, 384)), ("jpg", "JPEG", "9:21", (320, 768)),
                                        ("webp", "WEBP", "3:2", (608, 416))]:
            output = replicate.run(MODEL, input=ask(output_format=kind, aspect_ratio=shape))
            self.assertEqual(size_and_format(output[0].read()), (size, name))

    def test_four_pictures_have_seeds_of_their_own(self):
        four = [one.read() for one in replicate.run(MODEL, input=ask(num_outputs=4, seed=5, output_format="png"))]
        self.assertEqual(len(set(four)), 4)
        self.assertEqual(replicate.run(MODEL, input=ask(seed=7, output_format="png"))[0].read(), four[2])

    def test_from_a_picture(self):
        file = io.BytesIO(picture((160, 96)))
        file.name = "given.png"
        output = replicate.run(MODEL, input={"prompt": "a boat", "image": file, "num_inference_steps": 6, "prompt_strength": 0.7})
        self.assertEqual(size_and_format(output[0].read())[0], (160, 96))

    def test_a_wait_that_runs_out(self):
        started = time.monotonic()
        output = replicate.run(MODEL, input={**LONG, "num_inference_steps": 30, "num_outputs": 2}, wait=1)
        self.assertEqual(len(output), 2, time.monotonic() - started)

    def test_asynchronous(self):
        if NEW:
            make = replicate.AsyncReplicate(bearer_token=KEY, base_url=URL + "/v1").run(MODEL, input=ask())
        else:
            make = replicate.Client(api_token=KEY, base_url=URL).async_run(MODEL, input=ask())
        self.assertEqual(len(asyncio.run(make)), 1)


class Predictions(unittest.TestCase):
    def create(self, **arguments):
        if NEW:
            return replicate.models.predictions.create(model_owner="black-forest-labs", model_name="flux-krea-dev", **arguments)
        return replicate.models.predictions.create(model=MODEL, **arguments)

    def get(self, name):
        return replicate.predictions.get(prediction_id=name) if NEW else replicate.predictions.get(name)

    def cancel(self, name):
        return replicate.predictions.cancel(prediction_id=name) if NEW else replicate.predictions.cancel(name)

    def until(self, name, *states):
        for _ in range(600):
            prediction = self.get(name)
            if prediction.status in states:
                return prediction
            time.sleep(0.05)
        self.fail(f"still {prediction.status}")

    def test_life(self):
        prediction = self.create(input=ask(seed=42, num_inference_steps=28))
        self.assertIn(prediction.status, ["starting", "processing"])
        done = self.until(prediction.id, "succeeded")
        self.assertIn("Using seed: 42", done.logs.splitlines())
        self.assertEqual(len(done.output), 1)
        self.assertIsNone(done.error)
        if not NEW:
            self.assertGreater(done.metrics["predict_time"], 0)
            self.assertEqual(done.progress.percentage, 1.0)
        self.assertEqual(self.cancel(prediction.id).status, "succeeded")

    def test_cancel(self):
        prediction = self.create(input=LONG)
        self.until(prediction.id, "processing")
        self.assertEqual(self.cancel(prediction.id).status, "canceled")
        started = time.monotonic()
        self.assertIsNone(self.until(prediction.id, "canceled").output)
        self.assertLess(time.monotonic() - started, 5)

    def test_by_version(self):
        versions = (replicate.models.versions.list(model_owner="black-forest-labs", model_name="flux-krea-dev") if NEW
                    else replicate.models.get(MODEL).versions.list())
        version = versions.results[0]
        self.assertEqual(len(version.id), 64)
        prediction = replicate.predictions.create(version=version.id, input=ask())
        self.until(prediction.id, "succeeded")
        output = replicate.run(f"{MODEL}:{version.id}", input=ask())
        self.assertEqual(len(output), 1)

    def test_list(self):
        prediction = self.create(input=ask())
        self.until(prediction.id, "succeeded")
        page = replicate.predictions.list()
        self.assertEqual(page.results[0].id, prediction.id)
        if not NEW:
            self.assertIsNone(page.results[0].output)

    def test_stream(self):
        if NEW:
            events = list(replicate.stream(MODEL, input=ask(seed=3)))
            self.assertTrue(events)
            return
        events = list(replicate.stream(MODEL, input=ask(seed=3)))
        kinds = [event.event.value for event in events]
        self.assertEqual((kinds[-1], kinds.count("output")), ("done", 1))
        self.assertIn("Using seed: 3", "".join(event.data for event in events if event.event.value == "logs"))

    def test_errors(self):
        for wrong in [{"prompt": "x", "num_outputs": 5}, {}, {"prompt": "x", "aspect_ratio": "7:1"}]:
            with self.assertRaises(Exception) as raised:
                self.create(input=wrong)
            self.assertEqual(status_of(raised.exception), 422)
            self.assertIn("Input validation failed", str(raised.exception))
        with self.assertRaises(Exception) as raised:
            replicate.run("nobody/nothing", input=ask())
        self.assertEqual(status_of(raised.exception), 404)
        wrong = replicate.Replicate(bearer_token="wrong", base_url=URL + "/v1") if NEW else replicate.Client("wrong", base_url=URL)
        with self.assertRaises(Exception) as raised:
            wrong.run(MODEL, input=ask())
        self.assertEqual(status_of(raised.exception), 401)

    def test_a_picture_that_may_not_be_fetched(self):
        with self.assertRaises(Exception) as raised:
            replicate.run(MODEL, input=ask(image="http://169.254.169.254/latest"))
        self.assertIn("input.image", str(raised.exception))


class Catalogue(unittest.TestCase):
    def test_model(self):
        if NEW:
            model = replicate.models.get(model_owner="black-forest-labs", model_name="flux-krea-dev")
        else:
            model = replicate.models.get(MODEL)
        self.assertEqual((model.owner, model.name), ("black-forest-labs", "flux-krea-dev"))
        schema = model.latest_version.openapi_schema if not isinstance(model.latest_version, dict) else model.latest_version["openapi_schema"]
        self.assertEqual(schema["components"]["schemas"]["Input"]["required"], ["prompt"])
        names = [f"{one.owner}/{one.name}" for one in (replicate.models.list().results)]
        self.assertIn(MODEL, names)

    def test_a_model_is_a_deployment(self):
        if NEW:
            deployment = replicate.deployments.get(deployment_owner="black-forest-labs", deployment_name="flux-krea-dev")
            found = [f"{one.model.owner}/{one.model.name}" for one in client(URL).search(query="flux").models]
            self.assertEqual(len(replicate.models.search(body="flux").results), len(found))
        else:
            deployment = replicate.deployments.get(MODEL)
            prediction = deployment.predictions.create(input=ask())
            prediction.wait()
            self.assertEqual(prediction.status, "succeeded")
            found = [one.id for one in replicate.models.search("flux").results]
        self.assertEqual((deployment.owner, deployment.current_release.model), ("black-forest-labs", MODEL))
        self.assertIn(MODEL, found)

    def test_what_is_empty_here(self):
        for empty in [replicate.collections.list(), replicate.trainings.list()]:
            self.assertEqual(list(empty), [])

    def test_account_and_hardware(self):
        account = replicate.account.get() if NEW else client(URL).accounts.current()
        self.assertEqual(account.type, "user")
        self.assertTrue(list(replicate.hardware.list()))

    def test_files(self):
        data = picture()
        if NEW:
            file = replicate.files.create(content=data, filename="a.png", type="image/png", metadata={"a": "b"})
            got = replicate.files.get(file_id=file.id)
        else:
            file = replicate.files.create(io.BytesIO(data), filename="a.png", content_type="image/png", metadata={"a": "b"})
            got = replicate.files.get(file.id)
        self.assertEqual((got.size, got.id, got.metadata), (len(data), file.id, {"a": "b"}))
        listed = replicate.files.list()
        self.assertIn(file.id, [one.id for one in (listed.results if hasattr(listed, "results") else listed)])
        with urllib.request.urlopen(file.urls["get"] if isinstance(file.urls, dict) else file.urls.get) as answer:
            self.assertEqual(answer.read(), data)
        if NEW:
            replicate.files.delete(file_id=file.id)
        else:
            replicate.files.delete(file.id)
        with self.assertRaises(Exception) as raised:
            replicate.files.get(file_id=file.id) if NEW else replicate.files.get(file.id)
        self.assertEqual(status_of(raised.exception), 404)


class Webhooks(unittest.TestCase):
    def test_webhook(self):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        Receiver.seen.clear()
        hook = f"http://127.0.0.1:{server.server_port}/hook"
        wanted = ["start", "output", "logs", "completed"]
        prediction = Predictions().create(input=ask(num_inference_steps=28), webhook=hook, webhook_events_filter=wanted)

        def states():
            return [json.loads(body)["status"] for _, body in Receiver.seen]

        for _ in range(300):
            if "succeeded" in states():
                break
            time.sleep(0.1)
        server.shutdown()
        self.assertEqual((states()[-1], states().count("succeeded")), ("succeeded", 1))
        self.assertIn("processing", states())
        self.assertTrue(all(json.loads(body)["id"] == prediction.id for _, body in Receiver.seen))
        if NEW:
            secret = replicate.webhooks.default.secret.get().key
            self.verify_by_hand(secret)
            return
        secret = replicate.webhooks.default.secret()
        for headers, body in Receiver.seen:
            replicate.webhooks.validate(headers=headers, body=body.decode(), secret=secret)
            with self.assertRaises(Exception):
                replicate.webhooks.validate(headers=headers, body=body.decode() + " ", secret=secret)

    def verify_by_hand(self, secret):
        """As the Standard Webhooks specification says: version 2 has no helper."""
        import base64
        import hashlib
        import hmac

        for headers, body in Receiver.seen:
            headers = {name.lower(): value for name, value in headers.items()}
            message = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
            key = base64.b64decode(secret.removeprefix("whsec_"))
            signature = base64.b64encode(hmac.new(key, message, hashlib.sha256).digest()).decode()
            self.assertEqual(headers["webhook-signature"], "v1," + signature)


if __name__ == "__main__":
    print("replicate", VERSION)
    unittest.main(verbosity=1)
