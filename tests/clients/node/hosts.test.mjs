// npm `@fal-ai/client`, `openai` and `replicate`, unmodified, with their own hosts: as on a machine where DNS leads the vendors'
// names to this server, port 443, and its CA is trusted. `tls.connect` stands for DNS; names and certificates are checked as ever.
import assert from "node:assert/strict";
import { test } from "node:test";
import tls from "node:tls";

const { DARKROOM_TLS_URL: tlsUrl, DARKROOM_KEY: key } = process.env;
const led = new Set();
const connect = tls.connect;
tls.connect = (options, ...rest) => {
  if (options.port == 443) {
    led.add(options.servername ?? options.host);
    options = { ...options, host: "127.0.0.1", hostname: "127.0.0.1", port: new URL(tlsUrl).port, lookup: undefined };
  }
  return connect(options, ...rest);
};

const { fal } = await import("@fal-ai/client");
const { default: OpenAI } = await import("openai");
const { default: Replicate } = await import("replicate");

fal.config({ credentials: key });
const app = "fal-ai/flux/krea";
const input = { prompt: "a red fox", image_size: { width: 96, height: 64 }, num_inference_steps: 4, output_format: "png" };
const size = (bytes) => [bytes.readUInt32BE(16), bytes.readUInt32BE(20)];
const fetched = async (url) => Buffer.from(await (await fetch(url)).arrayBuffer());

test("fal: subscribe and upload", async () => {
  const { data } = await fal.subscribe(app, { input, logs: true, pollInterval: 50 });
  assert.ok(data.images[0].url.startsWith("https://"));
  const bytes = await fetched(data.images[0].url);
  assert.deepEqual(size(bytes), [96, 64]);
  const url = await fal.storage.upload(new Blob([bytes], { type: "image/png" }));
  assert.deepEqual(await fetched(url), bytes);
  const again = await fal.run(app + "/image-to-image", { input: { prompt: "a boat", image_url: url, num_inference_steps: 10 } });
  assert.equal(again.data.images.length, 1);
  for (const host of ["fal.run", "queue.fal.run", "rest.fal.ai"]) assert.ok(led.has(host), host);
});

test("fal: stream", async () => {
  const stream = await fal.stream(app, { input: { ...input, num_inference_steps: 20 } });
  let parts = 0;
  for await (const part of stream) parts += part.images.length;
  assert.ok(parts > 2);
});

// Several pictures over one connection, then a mistake; with the token that the client asks for itself, and with one of its own.
for (const [name, more] of [
  ["its own token", {}],
  [
    "a token provider",
    {
      tokenProvider: async () => {
        const body = JSON.stringify({ allowed_apps: ["flux"], token_expiration: 120 });
        const headers = { authorization: "Key " + key, "content-type": "application/json" };
        return (await fetch("https://rest.fal.ai/tokens/", { method: "POST", headers, body })).json();
      },
      tokenExpirationSeconds: 120,
    },
  ],
]) {
  test(`fal: realtime with ${name}`, async () => {
    const told = [];
    let tell;
    const connection = fal.realtime.connect(app, {
      ...more,
      connectionKey: name,
      throttleInterval: 0,
      onResult: (result) => tell(result),
      onError: (error) => tell(error),
    });
    const ask = (asked) => {
      const answer = new Promise((resolve) => (tell = resolve));
      connection.send(asked);
      return answer;
    };
    for (const seed of [1, 2, 3]) {
      const result = await ask({ ...input, seed });
      assert.equal(result.seed, seed, String(result));
      const [kind, data] = result.images[0].url.split(",");
      assert.equal(kind, "data:image/png;base64");
      assert.deepEqual(size(Buffer.from(data, "base64")), [96, 64]);
      told.push(data);
    }
    assert.equal(new Set(told).size, 3);
    const error = await ask({ ...input, num_images: 9 });
    assert.ok(error instanceof Error && /num_images/.test(JSON.stringify(error.body ?? error.message)), String(error));
    connection.close();
  });
}

test("openai", async () => {
  const client = new OpenAI({ apiKey: key });
  const answer = await client.images.generate({ model: "flux.1-krea-dev", prompt: "a fox", size: "64x64", steps: 4 });
  assert.ok(led.has("api.openai.com"));
  assert.deepEqual(size(await fetched(answer.data[0].url)), [64, 64]);
});

test("replicate", async () => {
  const replicate = new Replicate({ auth: key });
  const asked = { prompt: "a fox", num_inference_steps: 4, megapixels: "0.25", output_format: "png" };
  const [output] = await replicate.run("black-forest-labs/flux-krea-dev", { input: asked });
  assert.ok(led.has("api.replicate.com"));
  assert.deepEqual(size(Buffer.from(await (await output.blob()).arrayBuffer())), [512, 512]);
});
