// npm `@fal-ai/client` and `@fal-ai/server-proxy`, unmodified, in the ways that they have to reach another server.
import assert from "node:assert/strict";
import { createHash, createPublicKey, verify } from "node:crypto";
import { once } from "node:events";
import { createServer } from "node:http";
import { test } from "node:test";
import { ApiError, ValidationError, createFalClient } from "@fal-ai/client";

const { DARKROOM_URL: url, DARKROOM_TLS_URL: tlsUrl, DARKROOM_KEY: credentials } = process.env;
const app = "fal-ai/flux/krea";
const image_size = { width: 96, height: 64 };
const input = { prompt: "a red fox", image_size, num_inference_steps: 4 };

// Both of the client's own ways: every request goes to a proxy's URL, or its URL is rewritten.
const rewritten = (base) => async (request) => ({
  ...request,
  url: request.url
    .replace(/^https:\/\/queue\.fal\.run/, base + "/fal/queue")
    .replace(/^https:\/\/fal\.run/, base + "/fal/run")
    .replace(/^https:\/\/rest\.fal\.ai/, base + "/fal/rest"),
});
const clients = {
  proxy: createFalClient({ credentials, proxyUrl: { url: url + "/fal/proxy", when: "always" } }),
  middleware: createFalClient({ credentials, requestMiddleware: rewritten(url) }),
  tls: createFalClient({ credentials, requestMiddleware: rewritten(tlsUrl) }),
};

const png = Buffer.from(
  "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAKElEQVR4nGP8//8/AzbAhFWUgYGBBUKd1JSHC5lff4hPB+kSjCS7CgB6KAkLc/NFhQAAAABJRU5ErkJggg==",
  "base64",
);

for (const [name, fal] of Object.entries(clients)) {
  test(`${name}: run`, async () => {
    const { data, requestId } = await fal.run(app, { input: { ...input, seed: 42, output_format: "png" } });
    assert.ok(requestId);
    assert.equal(data.seed, 42);
    const file = await fetch(data.images[0].url);
    assert.equal(file.headers.get("content-type"), "image/png");
    const bytes = Buffer.from(await file.arrayBuffer());
    assert.deepEqual([bytes.readUInt32BE(16), bytes.readUInt32BE(20)], [96, 64]);
  });

  test(`${name}: subscribe with logs`, async () => {
    const states = [];
    const { data, requestId } = await fal.subscribe(app, {
      input: { ...input, seed: 7, num_inference_steps: 28 },
      logs: true,
      pollInterval: 50,
      onQueueUpdate: (status) => states.push(status),
    });
    assert.equal(data.images.length, 1);
    const last = states.at(-1);
    assert.equal(last.status, "COMPLETED");
    assert.ok(last.logs.some((line) => line.message === "Using seed: 7"));
    const result = await fal.queue.result(app, { requestId });
    assert.deepEqual(result.data, data);
  });

  test(`${name}: subscribe by events`, async () => {
    const { data } = await fal.subscribe(app, { input, mode: "streaming", logs: true });
    assert.equal(data.prompt, input.prompt);
  });

  test(`${name}: stream`, async () => {
    const prompt = "Füchse 🦊";
    const stream = await fal.stream(app, { input: { ...input, prompt, num_inference_steps: 20 } });
    const parts = [];
    for await (const part of stream) parts.push(part);
    const last = await stream.done();
    assert.ok(parts.length > 2);
    assert.ok(parts[0].images[0].url.startsWith("data:image/jpeg;base64,"));
    assert.equal(last.prompt, prompt);
    assert.ok((await fetch(last.images[0].url)).ok);
  });

  test(`${name}: errors`, async () => {
    await assert.rejects(fal.run(app, { input: { ...input, num_images: 9 } }), (error) => {
      assert.ok(error instanceof ValidationError);
      assert.equal(error.status, 422);
      assert.equal(error.getFieldErrors("num_images")[0].type, "less_than_equal");
      return true;
    });
    await assert.rejects(fal.subscribe(app, { input: {} }), ValidationError);
    await assert.rejects(fal.run("fal-ai/nothing-here", { input }), (error) => error instanceof ApiError && error.status === 404);
    const stream = await fal.stream(app, { input: { ...input, num_inference_steps: 99 } });
    await assert.rejects(stream.done(), (error) => error.status === 422);
  });

  test(`${name}: a file in the input is uploaded`, async () => {
    const file = new Blob([png], { type: "image/png" });
    const { data } = await fal.run(app + "/image-to-image", { input: { prompt: "x", image_url: file, num_inference_steps: 10 } });
    assert.ok((await fetch(data.images[0].url)).ok);
    const { data: redux } = await fal.run(app + "/redux", { input: { image_url: file, image_size, num_inference_steps: 4 } });
    assert.equal(redux.prompt, "");
  });

  test(`${name}: cancel`, async () => {
    const long = { prompt: "a fox", num_inference_steps: 50, num_images: 4, image_size: "square_hd" };
    const { request_id: requestId } = await fal.queue.submit(app, { input: long });
    await fal.queue.cancel(app, { requestId });
    const started = performance.now();
    let status;
    do status = await fal.queue.status(app, { requestId });
    while (status.status !== "COMPLETED" && performance.now() - started < 10_000);
    assert.equal(status.error_type, "client_cancelled");
    await assert.rejects(fal.queue.result(app, { requestId }), (error) => error.status === 499);
  });
}

test("an upload in parts", async () => {
  const bytes = new Uint8Array(91 * 1024 * 1024); // the client begins parts above 90 MB
  bytes.set(png);
  const file = await clients.middleware.storage.upload(new Blob([bytes], { type: "image/png" }));
  const back = await fetch(file);
  assert.equal((await back.arrayBuffer()).byteLength, bytes.byteLength);
});

test("a wrong key", async () => {
  const fal = createFalClient({ credentials: "wrong", requestMiddleware: rewritten(url) });
  await assert.rejects(fal.run(app, { input }), (error) => error.status === 401);
});

test("an abort stops the work", async () => {
  const stop = new AbortController();
  const long = { prompt: "a fox", num_inference_steps: 50, num_images: 4, image_size: "square_hd" };
  const work = clients.middleware.run(app, { input: long, abortSignal: stop.signal });
  setTimeout(() => stop.abort(), 300);
  await assert.rejects(work);
  const started = performance.now();
  await clients.middleware.run(app, { input });
  assert.ok(performance.now() - started < 10_000);
});

test("a webhook is verified with the published key", async () => {
  const seen = [];
  const server = createServer(async (request, response) => {
    const pieces = [];
    for await (const piece of request) pieces.push(piece);
    seen.push([request.headers, Buffer.concat(pieces)]);
    response.end();
    server.emit("told");
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  const webhookUrl = `http://127.0.0.1:${server.address().port}/hook`;
  const told = once(server, "told");
  const { request_id } = await clients.middleware.queue.submit(app, { input, webhookUrl });
  await told;
  server.close();
  const [headers, body] = seen[0];
  const { keys } = await (await fetch(url + "/fal/rest/.well-known/jwks.json")).json();
  const message = [
    headers["x-fal-webhook-request-id"],
    headers["x-fal-webhook-user-id"],
    headers["x-fal-webhook-timestamp"],
    createHash("sha256").update(body).digest("hex"),
  ].join("\n");
  const key = createPublicKey({ key: keys[0], format: "jwk" });
  assert.ok(verify(null, Buffer.from(message), key, Buffer.from(headers["x-fal-webhook-signature"], "hex")));
  assert.equal(JSON.parse(body).request_id, request_id);
});

test("a browser's proxy in between", async () => {
  // The package's own handler, whose upstream is this server instead of fal's.
  const { handleRequest } = await import("@fal-ai/server-proxy");
  const upstream = globalThis.fetch;
  const gateway = createServer(async (request, response) => {
    const pieces = [];
    for await (const piece of request) pieces.push(piece);
    const headers = {};
    await handleRequest({
      id: "test",
      method: request.method,
      respondWith: (status, data) => response.writeHead(status, headers).end(typeof data === "string" ? data : JSON.stringify(data)),
      sendResponse: async (answer) => response.writeHead(answer.status, headers).end(Buffer.from(await answer.arrayBuffer())),
      getHeaders: () => request.headers,
      getHeader: (name) => request.headers[name],
      sendHeader: (name, value) => (headers[name] = value),
      getRequestBody: async () => Buffer.concat(pieces).toString(),
    }, { resolveFalAuth: async () => "Key " + credentials, allowUnauthorizedRequests: true, isAuthenticated: async () => true, allowedEndpoints: ["fal-ai/**"] });
  }).listen(0, "127.0.0.1");
  await once(gateway, "listening");
  const own = `http://127.0.0.1:${gateway.address().port}`;
  globalThis.fetch = (target, options) =>
    upstream(
      String(target)
        .replace(/^https:\/\/queue\.fal\.run/, url + "/fal/queue")
        .replace(/^https:\/\/fal\.run/, url + "/fal/run"),
      options,
    );
  try {
    const fal = createFalClient({ credentials: "none", fetch: upstream, proxyUrl: { url: own, when: "always" } });
    const { data } = await fal.subscribe(app, { input, pollInterval: 50 });
    assert.equal(data.images.length, 1);
  } finally {
    globalThis.fetch = upstream;
    gateway.close();
    gateway.closeAllConnections();
  }
});
