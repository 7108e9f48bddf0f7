// npm `openai`, unmodified: version 7, and version 6 as `openai-6`. Which one: CLIENT.
import assert from "node:assert/strict";
import { test } from "node:test";

const { default: OpenAI, toFile } = await import(process.env.CLIENT ?? "openai");
const { DARKROOM_URL: url, DARKROOM_KEY: apiKey } = process.env;
const client = new OpenAI({ baseURL: url + "/v1", apiKey });
const model = "flux.1-krea-dev";

const png = Buffer.from(
  "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAKElEQVR4nGP8//8/AzbAhFWUgYGBBUKd1JSHC5lff4hPB+kSjCS7CgB6KAkLc/NFhQAAAABJRU5ErkJggg==",
  "base64",
);
const size = (bytes) => [bytes.readUInt32BE(16), bytes.readUInt32BE(20)];

test("generate", async () => {
  const answer = await client.images.generate({ model, prompt: "a fox", seed: 7, cfg_scale: 4, steps: 6, size: "4:5" });
  assert.equal(answer.data[0].seed, 7);
  const file = await fetch(answer.data[0].url);
  assert.equal(file.headers.get("content-type"), "image/png");
  assert.deepEqual(size(Buffer.from(await file.arrayBuffer())), [916, 1145]);
});

test("stream", async () => {
  const stream = await client.images.generate({ model, prompt: "a fox", size: "64x64", stream: true, partial_images: 3, steps: 20 });
  const kinds = [];
  for await (const event of stream) kinds.push(event.type);
  assert.deepEqual(kinds, [...Array(3).fill("image_generation.partial_image"), "image_generation.completed"]);
});

test("edit", async () => {
  const image = await toFile(png, "a.png", { type: "image/png" });
  for (const given of [image, [image, image]]) {
    const answer = await client.images.edit({ model, prompt: "a red apple", image: given, size: "128x96", response_format: "b64_json", steps: 4 });
    assert.deepEqual(size(Buffer.from(answer.data[0].b64_json, "base64")), [128, 96]);
  }
});

test("errors", async () => {
  await assert.rejects(client.images.generate({ model, prompt: "x", n: 99 }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.equal(error.param, "n");
    return true;
  });
  await assert.rejects(client.images.generate({ model: "none", prompt: "x" }), OpenAI.NotFoundError);
  await assert.rejects(new OpenAI({ baseURL: url + "/v1", apiKey: "wrong" }).models.list(), OpenAI.AuthenticationError);
});

test("models", async () => {
  const models = [];
  for await (const entry of client.models.list()) models.push(entry.id);
  assert.ok(models.includes(model));
});

test("an abort stops the work", async () => {
  const stop = new AbortController();
  const work = client.images.generate({ model, prompt: "a fox", n: 10, size: "2048x2048", steps: 50 }, { signal: stop.signal, maxRetries: 0 });
  setTimeout(() => stop.abort(), 300);
  await assert.rejects(work);
  const started = performance.now();
  await client.images.generate({ model, prompt: "a key", size: "64x64", steps: 2 });
  assert.ok(performance.now() - started < 5000);
});
