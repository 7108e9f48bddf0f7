// The picture classifier of the npm package `nsfwjs` as safetensors, for `darkroom`'s picture gate.
//
//     npm pack nsfwjs@4.3.0 && tar xzf nsfwjs-4.3.0.tgz
//     node convert.mjs package ../../crates/flux/assets/safety/nsfwjs_mobilenet_v2.safetensors
//
// The package holds a Keras MobileNetV2 whose numbers are bytes with a scale and a least value for each tensor. Kernels stay
// bytes (`NAME.weight`, U8) beside `NAME.range` (least value, scale; F32), in the order that `darkroom` computes in:
// [out, in, kh, kw], depthwise [kh, kw, channels]. Each batch norm behind a convolution becomes `NAME.factor` and `NAME.bias`
// (F32): factor = gamma / sqrt(variance + 0.001), bias = beta - mean * factor. Dense layers have `NAME.bias` alone. Needs
// nothing but Node.js.

import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { resolve } from "node:path";

const [, , folder, output] = process.argv;
const load = createRequire(import.meta.url);
const at = (file) => resolve(folder, "dist/models/mobilenet_v2", file);
const { version, license } = JSON.parse(readFileSync(resolve(folder, "package.json"), "utf8"));
const model = load(at("model.min.js"));
const bytes = Buffer.from(load(at("group1-shard1of1.min.js")), "base64");

const stored = new Map();
let start = 0;
for (const { name, shape, quantization } of model.weightsManifest.flatMap((group) => group.weights)) {
  if (quantization?.dtype !== "uint8") throw new Error(`${name} is not in bytes`);
  const count = shape.reduce((a, b) => a * b, 1);
  stored.set(name, { shape, ...quantization, codes: bytes.subarray(start, start + count) });
  start += count;
}
if (start !== bytes.length) throw new Error(`${bytes.length - start} bytes are left`);

const numbers = (name) => {
  const { codes, scale, min } = stored.get(name);
  stored.delete(name);
  return Float64Array.from(codes, (code) => code * scale + min);
};

const tensors = [];
const f32 = (name, values) => {
  const data = Buffer.from(Float32Array.from(values).buffer);
  tensors.push({ name, dtype: "F32", shape: [values.length], data });
};
// Codes of a kernel [kh, kw, in, out] or [in, out], in another order of axes.
const kernel = (name, from, axes) => {
  const { shape, codes, scale, min } = stored.get(from);
  stored.delete(from);
  const to = axes.map((axis) => shape[axis]);
  const step = shape.map((_, axis) => shape.slice(axis + 1).reduce((a, b) => a * b, 1));
  const data = Buffer.alloc(codes.length);
  const index = to.map(() => 0);
  for (let i = 0; i < data.length; i++) {
    data[i] = codes[axes.reduce((sum, axis, k) => sum + index[k] * step[axis], 0)];
    for (let k = to.length - 1; k >= 0 && ++index[k] === to[k]; k--) index[k] = 0;
  }
  f32(`${name}.range`, [min, scale]);
  tensors.push({ name: `${name}.weight`, dtype: "U8", shape: to, data });
};
const batchNorm = (name, from) => {
  const [gamma, beta, mean, variance] = ["gamma", "beta", "moving_mean", "moving_variance"].map((part) =>
    numbers(`${from}/${part}`),
  );
  const factor = gamma.map((g, i) => g / Math.sqrt(variance[i] + 0.001));
  f32(`${name}.factor`, factor);
  f32(`${name}.bias`, beta.map((b, i) => b - mean[i] * factor[i]));
};
const convolution = (name, from = name, norm = `${from}_BN`) => {
  kernel(name, `${from}/kernel`, [3, 2, 0, 1]);
  batchNorm(name, norm);
};
const depthwise = (name, from) => {
  const kept = stored.get(`${from}/depthwise_kernel`);
  kept.shape = kept.shape.slice(0, 3); // one kernel for each channel
  kernel(name, `${from}/depthwise_kernel`, [0, 1, 2]);
  batchNorm(name, `${from}_BN`);
};

convolution("first", "Conv1", "bn_Conv1");
depthwise("block_0.depthwise", "expanded_conv_depthwise");
convolution("block_0.project", "expanded_conv_project");
for (let i = 1; i <= 16; i++) {
  convolution(`block_${i}.expand`, `block_${i}_expand`);
  depthwise(`block_${i}.depthwise`, `block_${i}_depthwise`);
  convolution(`block_${i}.project`, `block_${i}_project`);
}
convolution("last", "Conv_1", "Conv_1_bn");
for (let i = 1; i <= 3; i++) {
  kernel(`dense_${i}`, `dense_${i}/kernel`, [1, 0]);
  f32(`dense_${i}.bias`, numbers(`dense_${i}/bias`));
}
if (stored.size > 0) throw new Error(`not used: ${[...stored.keys()].join(", ")}`);

// Wide numbers first: each lies at a multiple of its size.
tensors.sort((a, b) => (b.dtype === "F32") - (a.dtype === "F32") || (a.name < b.name ? -1 : 1));
const header = { __metadata__: { origin: `npm nsfwjs ${version}, dist/models/mobilenet_v2`, license } };
let length = 0;
for (const { name, dtype, shape, data } of tensors) {
  header[name] = { dtype, shape, data_offsets: [length, (length += data.length)] };
}
const json = Buffer.from(JSON.stringify(header));
const padded = Buffer.concat([json, Buffer.alloc((8 - (json.length % 8)) % 8, " ")]);
const size = Buffer.alloc(8);
size.writeBigUInt64LE(BigInt(padded.length));
writeFileSync(output, Buffer.concat([size, padded, ...tensors.map(({ data }) => data)]));
console.log(`${output}: ${tensors.length} tensors, ${length} bytes`);
