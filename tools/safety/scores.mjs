// What `nsfwjs` says of pictures: the goldens of the picture gate.
//
//     npm install --no-save nsfwjs@4.3.0 @tensorflow/tfjs@4.22.0 buffer@6.0.3 pngjs@7.0.0
//     node scores.mjs ../../crates/flux/tests/golden/photographs/*.png ../../crates/flux/tests/golden/pictures/rgb.png \
//       > ../../crates/flux/tests/golden/picture_scores.json
//
// tfjs computes on its plain JavaScript backend, in float32. Classes come in the order of the network's outputs.

import { readFileSync } from "node:fs";
import { basename } from "node:path";
import * as tf from "@tensorflow/tfjs";
import { load } from "nsfwjs/core";
import { MobileNetV2Model } from "nsfwjs/models/mobilenet_v2";
import { PNG } from "pngjs";

console.info = console.warn = () => {};
await tf.setBackend("cpu");
const model = await load("MobileNetV2", { modelDefinitions: [MobileNetV2Model] });
const scores = {};
for (const path of process.argv.slice(2)) {
  const { width, height, data } = PNG.sync.read(readFileSync(path));
  const pixels = new Int32Array(3 * width * height);
  for (let i = 0; i < width * height; i++) for (let c = 0; c < 3; c++) pixels[3 * i + c] = data[4 * i + c];
  scores[basename(path)] = Array.from(model.infer(tf.tensor3d(pixels, [height, width, 3])).dataSync());
}
console.log(JSON.stringify({ classes: ["Drawing", "Hentai", "Neutral", "Porn", "Sexy"], scores }, null, 1));
