// npm `replicate`, unmodified.
import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:http";
import { test } from "node:test";
import Replicate, { validateWebhook } from "replicate";

const { DARKROOM_URL: url, DARKROOM_TLS_URL: tlsUrl, DARKROOM_KEY: auth } = process.env;
const replicate = new Replicate({ baseUrl: url + "/v1", auth });
const secure = new Replicate({ baseUrl: tlsUrl + "/v1", auth });
const model = "black-forest-labs/flux-krea-dev";
const input = { prompt: "a red fox", num_inference_steps: 4, megapixels: "0.25", output_format: "png" };
const long = { prompt: "a fox", num_inference_steps: 50, num_outputs: 4, go_fast: false };

const png = Buffer.from(
  "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAKElEQVR4nGP8//8/AzbAhFWUgYGBBUKd1JSHC5lff4hPB+kSjCS7CgB6KAkLc/NFhQAAAABJRU5ErkJggg==",
  "base64",
);
const bytesOf = async (output) => Buffer.from(await (await output.blob()).arrayBuffer());
const size = (bytes) => [bytes.readUInt32BE(16), bytes.readUInt32BE(20)];

test("the readme: run gives file objects", async () => {
  const [output] = await replicate.run(model, { input });
  assert.deepEqual(size(await bytesOf(output)), [512, 512]);
});

test("over TLS outputs are addresses", async () => {
  const [output] = await secure.run(model, { input });
  assert.ok(String(output.url()).startsWith(tlsUrl + "/files/"));
  assert.deepEqual(size(await bytesOf(output)), [512, 512]);
});

test("run by polling, with progress", async () => {
  const states = [];
  const outputs = await replicate.run(model, { input: { ...input, num_outputs: 2 }, wait: { mode: "poll", interval: 50 } }, (p) => states.push(p.status));
  assert.equal(outputs.length, 2);
  assert.equal(states.at(-1), "succeeded");
});

test("a wait that runs out goes on by polling", async () => {
  const outputs = await replicate.run(model, { input: { ...long, num_outputs: 2, num_inference_steps: 30 }, wait: { mode: "block", timeout: 1, interval: 100 } });
  assert.equal(outputs.length, 2);
});

test("a file in the input is uploaded", async () => {
  const [output] = await replicate.run(model, { input: { prompt: "a boat", image: png, output_format: "png", num_inference_steps: 6 } });
  assert.equal(size(await bytesOf(output)).length, 2);
});

test("predictions: create, get, list, cancel", async () => {
  const made = await replicate.predictions.create({ model, input: long });
  let seen;
  do seen = await replicate.predictions.get(made.id);
  while (seen.status === "starting");
  await replicate.predictions.cancel(made.id);
  const ended = await replicate.wait(made, { interval: 50 });
  assert.equal(ended.status, "canceled");
  const page = await replicate.predictions.list();
  assert.equal(page.results[0].id, made.id);
  for await (const batch of replicate.paginate(replicate.predictions.list)) assert.ok(batch.length > 0);
});

test("progress is read from the log", async () => {
  const made = await replicate.predictions.create({ model, input: { ...input, seed: 42, num_inference_steps: 28 } });
  const ended = await replicate.wait(made, { interval: 50 });
  assert.ok(ended.logs.split("\n").includes("Using seed: 42"));
});

test("stream", async () => {
  for (const client of [replicate, secure]) {
    const kinds = [];
    let file;
    for await (const event of client.stream(model, { input: { ...input, seed: 3 } })) {
      kinds.push(event.event);
      if (event.event === "output") file = event.data;
    }
    assert.equal(kinds.at(-1), "done");
    assert.equal(kinds.filter((kind) => kind === "output").length, 1);
    assert.ok(file);
  }
});

test("errors", async () => {
  await assert.rejects(replicate.run(model, { input: { ...input, num_outputs: 5 } }), (error) => {
    assert.equal(error.response.status, 422);
    assert.match(error.message, /num_outputs/);
    return true;
  });
  await assert.rejects(replicate.run("nobody/nothing", { input }), (error) => error.response.status === 404);
  await assert.rejects(new Replicate({ baseUrl: url + "/v1", auth: "wrong" }).run(model, { input }), (error) => error.response.status === 401);
  await assert.rejects(replicate.run(model, { input: { ...input, image: "http://169.254.169.254/x" } }), /input\.image/);
});

test("models, versions, hardware, account, files", async () => {
  const shown = await replicate.models.get("black-forest-labs", "flux-krea-dev");
  const versions = await replicate.models.versions.list("black-forest-labs", "flux-krea-dev");
  assert.equal(versions.results[0].id, shown.latest_version.id);
  const version = await replicate.models.versions.get("black-forest-labs", "flux-krea-dev", shown.latest_version.id);
  assert.deepEqual(version.openapi_schema.components.schemas.Input.required, ["prompt"]);
  assert.ok((await replicate.hardware.list()).length > 0);
  assert.equal((await replicate.deployments.get("black-forest-labs", "flux-krea-dev")).current_release.number, 1);
  assert.ok((await replicate.models.search("flux")).results.length > 0);
  assert.equal((await replicate.accounts.current()).type, "user");
  const file = await replicate.files.create(png, { about: "a test" });
  assert.equal((await replicate.files.get(file.id)).size, png.length);
  assert.ok((await replicate.files.list()).results.some((one) => one.id === file.id));
  await replicate.files.delete(file.id);
  await assert.rejects(replicate.files.get(file.id), (error) => error.response.status === 404);
});

test("a webhook is verified with the client's own helper", async () => {
  const seen = [];
  const server = createServer(async (request, response) => {
    const pieces = [];
    for await (const piece of request) pieces.push(piece);
    const body = Buffer.concat(pieces).toString();
    seen.push([request.headers, body]);
    response.end();
    if (JSON.parse(body).status === "succeeded") server.emit("told");
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  const told = once(server, "told");
  const webhook = `http://127.0.0.1:${server.address().port}/hook`;
  await replicate.predictions.create({ model, input, webhook, webhook_events_filter: ["start", "output", "completed"] });
  await told;
  server.close();
  const { key } = await replicate.webhooks.default.secret.get();
  const [first, ...rest] = seen.map(([, body]) => JSON.parse(body).status);
  assert.match(first, /^(starting|processing)$/); // the start is told when it is decided
  assert.deepEqual(rest, ["processing", "succeeded"]);
  for (const [headers, body] of seen) {
    const signed = { id: headers["webhook-id"], timestamp: headers["webhook-timestamp"], signature: headers["webhook-signature"], body, secret: key };
    assert.equal(await validateWebhook(signed), true);
    assert.equal(await validateWebhook({ ...signed, body: body + " " }), false);
  }
});
