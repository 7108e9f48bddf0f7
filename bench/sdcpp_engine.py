"""Steps of a FLUX transformer by stable-diffusion.cpp (PyPI stable-diffusion-cpp-python): waits for a line before each step and answers
with its seconds as JSON. Started by peers.py with the Python that has the package.

    sdcpp_engine.py KIND TRANSFORMER CLIP VAE WIDTH HEIGHT THREADS

The package has no call for one evaluation. It calls back after each step, so a long generation is begun and held in that call: the time
between two calls, less the waiting, is a step's. It reads a prompt with 256 T5 tokens and no more; without a T5 they are zeros, which
take the same time. Its velocity cannot be had through the package. KIND is bf16 or one of ggml's types, to which weights are turned.
"""

import json
import os
import sys
import time


def say(**values):
    # The library writes to standard output, too: answers go to the pipe that peers.py reads.
    os.write(ANSWERS, (json.dumps(values) + "\n").encode())


def peak_rss():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def main():
    kind, transformer, clip, vae, width, height, threads = sys.argv[1:]
    import stable_diffusion_cpp

    model = stable_diffusion_cpp.StableDiffusion(
        diffusion_model_path=transformer, clip_l_path=clip, vae_path=vae, n_threads=int(threads), wtype="default" if kind == "bf16" else kind,
        diffusion_flash_attn=os.environ.get("SDCPP_FLASH_ATTENTION") == "1", verbose=os.environ.get("SDCPP_VERBOSE") == "1")
    state = {"start": None, "warm": False}

    def stepped(step, steps, seconds):
        now = time.perf_counter()
        if state["start"] is not None and step > 0:
            spent = now - state["start"]
            if state["warm"]:
                say(seconds=spent, peak_rss_bytes=peak_rss())
            else:
                state["warm"] = True
                say(ready=True, warm_up_seconds=spent, version=stable_diffusion_cpp.__version__)
            if not sys.stdin.readline():
                os._exit(0)  # the picture is not wanted
        state["start"] = time.perf_counter()

    model.generate_image(prompt="a red apple", width=int(width), height=int(height), cfg_scale=1.0, guidance=4.0, sample_method="euler",
                         sample_steps=1000, seed=1, progress_callback=stepped)


if __name__ == "__main__":
    ANSWERS = os.dup(1)
    os.dup2(2, 1)
    main()
