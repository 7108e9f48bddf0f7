"""One part of FLUX by PyTorch, diffusers and transformers: waits for a line before each run and answers with its seconds as JSON, as
`darkroom bench … --paced` does. Started by peers.py.

    torch_engine.py step|vae|t5 PRECISION FOLDER INPUTS OUT THREADS

PRECISION is bf16, f32, or int8: the model in f32 whose linear layers are quantised by torch.ao's quantize_dynamic.
"""

import gc
import json
import os
import sys
import time

import torch
from safetensors.torch import load_file, save_file

DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32, "int8": torch.float32}


def quantised(model, precision):
    if precision != "int8":
        return model
    import warnings

    warnings.filterwarnings("ignore")  # of torch.ao's retirement
    torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8, inplace=True)
    gc.collect()
    return model


def step(precision, folder, inputs):
    from diffusers import FluxTransformer2DModel

    dtype = DTYPES[precision]
    model = FluxTransformer2DModel.from_pretrained(folder, torch_dtype=dtype).eval()
    model = quantised(model, precision)
    given = {name: value.to(dtype) for name, value in inputs.items()}
    # Positions are whole numbers and are turned into angles in f32 or f64, whatever the model computes in.
    ids = {name: inputs[name][0] for name in ("img_ids", "txt_ids")}

    def run():
        return model(hidden_states=given["img"], encoder_hidden_states=given["txt"], pooled_projections=given["y"],
                     timestep=given["timesteps"], guidance=given["guidance"], return_dict=False, **ids)[0]

    return run


def vae(precision, folder, inputs):
    from diffusers import AutoencoderKL

    dtype = DTYPES[precision]
    model = quantised(AutoencoderKL.from_pretrained(folder, torch_dtype=dtype).eval(), precision)
    latents = (inputs["latents"] / model.config.scaling_factor + model.config.shift_factor).to(dtype)
    if os.environ.get("CHANNELS_LAST") == "1":
        model, latents = (x.to(memory_format=torch.channels_last) for x in (model, latents))
    return lambda: model.decode(latents, return_dict=False)[0]


def t5(precision, folder, inputs):
    from transformers import T5EncoderModel

    model = quantised(T5EncoderModel.from_pretrained(folder, dtype=DTYPES[precision]).eval(), precision)
    ids = inputs["ids"].long()[None]
    return lambda: model(input_ids=ids, return_dict=False)[0]


def peak_rss():
    """The most memory this process had at one time, as the system counts it."""
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def say(**values):
    print(json.dumps(values), flush=True)


def main():
    part, precision, folder, inputs, out, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    torch.set_num_interop_threads(1)
    with torch.inference_mode():
        run = {"step": step, "vae": vae, "t5": t5}[part](precision, folder, load_file(inputs))

        def timed():
            start = time.perf_counter()
            result = run()
            return time.perf_counter() - start, result

        seconds, result = timed()
        save_file({"out": result.float().contiguous()}, out)
        del result
        say(ready=True, warm_up_seconds=seconds, version=torch.__version__)
        for _ in sys.stdin:
            say(seconds=timed()[0], peak_rss_bytes=peak_rss())


if __name__ == "__main__":
    main()
