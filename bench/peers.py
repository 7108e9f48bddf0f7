#!/usr/bin/env python3
"""Times darkroom beside other engines, on the same random weights and the same inputs, run by run in turns.

    python bench/peers.py --work FOLDER --rows step-256,vae-512,t5 --precisions bf16,int8 --runs 5

All engines of a row are started together and stay: each is warmed up, then they take turns, one computing at a time. A ratio is that
of darkroom's time to the peer's in the medians of all runs; its spread is the lowest and highest of the single rounds. Errors are the
relative L2 distance to PyTorch in f32. Finished rows are kept in the work folder and shown again instead of being run again (--again).

README.md beside this file says what is needed and what the rows are.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

import files as make

HERE = Path(__file__).resolve().parent


class Failed(Exception):
    """An engine that cannot run, with its last words."""


class Engine:
    """A process that is warm and waits for its turn."""

    def __init__(self, name, command, out=None, environment=None, log=None):
        self.name, self.out, self.seconds, self.rss = name, out, [], None
        environment = {**os.environ, **(environment or {})}
        self.log_path = log
        self.log = open(log, "w")
        self.log.write(" ".join(map(str, command)) + "\n")
        self.log.flush()
        start = time.monotonic()
        self.process = subprocess.Popen([str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
                                        text=True, env=environment)
        self.about = self._answer()
        say(f"  {name}: ready after {time.monotonic() - start:.1f} s, warm-up run {self.about['warm_up_seconds']:.3f} s")

    def _answer(self):
        while True:
            line = self.process.stdout.readline()
            if not line:
                self.process.wait()
                self.log.flush()
                words = Path(self.log_path).read_text(errors="replace").strip().splitlines()[-4:]
                raise Failed(f"{self.name} ended with {self.process.returncode}: {' | '.join(words)}")
            try:
                answer = json.loads(line)
            except ValueError:
                self.log.write(line)
                continue
            if isinstance(answer, dict):
                return answer

    def turn(self):
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        answer = self._answer()
        self.seconds.append(answer["seconds"])
        self.rss = answer.get("peak_rss_bytes") or self.rss

    def end(self):
        """Lets it go; darkroom's last line is its report."""
        report = None
        try:
            rest, _ = self.process.communicate(timeout=120)
            lines = rest.strip().splitlines()
            report = json.loads(lines[-1]) if lines else None
        except (OSError, ValueError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        self.log.close()
        return report if isinstance(report, dict) else None

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.log.close()


def say(text=""):
    print(text, file=sys.stderr, flush=True)


class Bench:
    """What the options say, and the commands of each engine."""

    def __init__(self, options):
        self.options = options
        self.files = make.Files(options.work)
        self.files.results.mkdir(parents=True, exist_ok=True)

    def out(self, row, engine):
        return self.files.results / f"{row}.{engine}.safetensors"

    def start(self, row, engine, command, environment=None, out=True):
        out = self.out(row, engine) if out else None
        if out and out.exists():
            out.unlink()
        command = command + (["--save", out] if out and "darkroom" in engine else [out] if out else [])
        threads = str(self.options.threads)
        environment = {"OMP_NUM_THREADS": threads, "RAYON_NUM_THREADS": threads, **(environment or {})}
        return Engine(engine, command, out, environment, self.files.results / f"{row}.{engine}.log")

    def darkroom(self, row, part, precision, arguments, threads=None, name=None, save=True):
        command = [self.options.darkroom, "bench", part, "--precision", precision, "--threads", threads or self.options.threads, "--paced"]
        return lambda: self.start(row, name or f"darkroom {precision}".replace(" ", "-"), command + arguments, out=save)

    def torch(self, row, part, precision, folder, inputs, channels_last=False):
        def begin():
            name = f"torch-{precision}" + ("-channels-last" if channels_last else "")
            out = self.out(row, name)
            command = [sys.executable, HERE / "torch_engine.py", part, precision, folder, inputs, out, self.options.threads]
            environment = {"OMP_NUM_THREADS": str(self.options.threads), "CHANNELS_LAST": str(int(channels_last))}
            return Engine(name, command, out, environment, self.files.results / f"{row}.{name}.log")
        return begin

    def reference(self, row, part, folder, inputs):
        """PyTorch's result in f32, computed once and kept; rows that ask the same share it."""
        row = row.removesuffix("-candle")
        kept = self.files.results / f"{row}.reference.safetensors"
        if not kept.exists():
            say("  the reference: PyTorch in f32, once")
            log = self.files.results / f"{row}.reference.log"
            partial = kept.with_suffix(".partial")
            engine = Engine("reference", [sys.executable, HERE / "torch_engine.py", part, "f32", folder, inputs, partial, self.options.threads],
                            partial, log=log)
            engine.end()
            partial.rename(kept)
        return load_file(kept)["out"].astype(np.float64)

    # ── rows ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def step(self, row, side):
        files = self.files
        make.make_transformer(files)
        make.make_inputs(files, side)
        arguments = ["--transformer", files.bfl, "--size", f"{side}x{side}", "--text-tokens", make.TEXT_TOKENS, "--inputs", files.inputs(side)]
        engines = []
        for precision in self.options.precisions:
            engines.append(self.darkroom(row, "step", precision, arguments))
            engines.append(self.torch(row, "step", precision, files.transformer, files.inputs(side)))
        return engines, lambda: self.reference(row, "step", files.transformer, files.inputs(side))

    def vae(self, row, side):
        files = self.files
        make.make_vae(files)
        make.make_latents(files, side)
        arguments = ["--vae", files.vae, "--size", f"{side}x{side}", "--inputs", files.latents(side)]
        engines = []
        for precision in (p for p in self.options.precisions if p != "int8"):
            engines.append(self.darkroom(row, "vae", precision, arguments))
            # As diffusers loads it, and in the order of numbers that its convolutions like best.
            engines.append(self.torch(row, "vae", precision, files.vae, files.latents(side)))
            engines.append(self.torch(row, "vae", precision, files.vae, files.latents(side), channels_last=True))
        return engines, lambda: self.reference(row, "vae", files.vae, files.latents(side))

    def t5(self, row, _):
        files = self.files
        make.make_t5(files)
        make.make_t5_ids(files)
        arguments = ["--t5", files.t5, "--tokens", make.TEXT_TOKENS, "--inputs", files.t5_ids]
        engines = []
        for precision in (p for p in self.options.precisions if p != "int8"):
            engines.append(self.darkroom(row, "t5", precision, arguments))
            engines.append(self.torch(row, "t5", precision, files.t5, files.t5_ids))
        return engines, lambda: self.reference(row, "t5", files.t5, files.t5_ids)

    def scaling(self, row, side):
        files = self.files
        make.make_transformer(files)
        make.make_inputs(files, side)
        arguments = ["--transformer", files.bfl, "--inputs", files.inputs(side)]
        engines = []
        for precision in (p for p in self.options.precisions if p != "f32"):
            for threads in (self.options.threads, 1):
                name = f"darkroom-{precision}-{threads}-threads"
                engines.append(self.darkroom(row, "step", precision, arguments, threads=threads, name=name, save=False))
        return engines, None

    def candle(self, row, side):
        files = self.files
        make.make_transformer(files)
        make.make_inputs(files, side)
        binary = self.options.candle or build_candle(self.files.folder)
        arguments = ["--transformer", files.bfl, "--inputs", files.inputs(side)]
        engines = [self.darkroom(row, "step", precision, arguments) for precision in self.options.precisions if precision != "f32"]
        for kind in self.options.candle_kinds:
            weights = files.bfl
            if kind.startswith("q"):
                weights = files.folder / f"mid-{kind}.candle.gguf"
                if not weights.exists():
                    say(f"  making {weights.name}")
                    subprocess.run([binary, "quantize", kind, files.bfl, weights], check=True)
            engines.append(lambda kind=kind, weights=weights: self.start(row, f"candle-{kind}", [binary, "step", kind, weights, files.inputs(side)]))
        return engines, lambda: self.reference(row, "step", files.transformer, files.inputs(side))

    def sdcpp(self, row, side):
        """The package reads 256 T5 tokens and no more, so the picture has 256 tokens more: the same work in all."""
        files = self.files
        make.make_transformer(files)
        make.make_clip(files)
        make.make_vae(files)
        size = (2 * side, side)
        tokens = size[0] // 16 * (size[1] // 16)
        assert tokens + 256 == (side // 16) ** 2 + make.TEXT_TOKENS or side != 256
        arguments = ["--transformer", files.bfl, "--size", f"{size[0]}x{size[1]}", "--text-tokens", "256"]
        engines = [self.darkroom(row, "step", p, arguments, save=False) for p in self.options.precisions if p != "f32"]
        for kind in self.options.sdcpp_kinds:
            command = [self.options.sdcpp_python, HERE / "sdcpp_engine.py", kind, files.bfl, files.clip, files.vae_file, *size, self.options.threads]
            engines.append(lambda kind=kind, command=command: self.start(row, f"sdcpp-{kind}", command, out=False))
        return engines, None

    # ── running ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self, row):
        kept = self.files.results / f"{row}.json"
        if kept.exists() and not self.options.again:
            say(f"{row}: kept from an earlier run ({kept}); --again runs it anew")
            return json.loads(kept.read_text())
        say(f"{row}:")
        build, side = ROWS[row]
        starts, reference = build(self, row, side)
        expected = reference() if reference else None
        engines = []
        try:
            for start in starts:
                engines.append(start())
            for turn in range(self.options.runs):
                # Every other round goes the other way, so that nobody always follows the same neighbour.
                for engine in engines if turn % 2 == 0 else engines[::-1]:
                    engine.turn()
                say(f"  round {turn + 1}: " + ", ".join(f"{e.name} {e.seconds[-1]:.3f}" for e in engines))
        except BaseException:
            for engine in engines:
                engine.kill()
            raise
        result = {"row": row, "threads": self.options.threads, "runs": self.options.runs, "engines": {}}
        for engine in engines:
            report = engine.end()
            told = {"seconds": engine.seconds, "median_seconds": statistics.median(engine.seconds), "peak_rss_bytes": engine.rss,
                    "warm_up_seconds": engine.about["warm_up_seconds"]}
            if "version" in engine.about:
                told["version"] = engine.about["version"]
            if report:
                told |= {key: report[key] for key in ("share_of_peak", "peak_gflop_per_second", "seconds_at_peak", "gflop") if key in report}
            if expected is not None and engine.out and engine.out.exists():
                told["error"] = distance(load_file(engine.out)["out"], expected)
            result["engines"][engine.name] = told
        result["ratios"] = ratios(result["engines"])
        kept.write_text(json.dumps(result, indent=1))
        return result


def distance(got, expected):
    """Relative L2."""
    if got.shape != expected.shape:
        raise Failed(f"a result has the shape {got.shape}, the reference {expected.shape}")
    return float(np.linalg.norm(got.astype(np.float64) - expected) / np.linalg.norm(expected))


def ratios(engines):
    """darkroom's time as a part of each peer's; with nobody else there, that of more threads as a part of one's."""
    ours = [name for name in engines if name.startswith("darkroom")]
    theirs = [name for name in engines if name not in ours]
    pairs = [(a, b) for a in ours for b in theirs] or list(zip(ours[::2], ours[1::2]))
    found = []
    for a, b in pairs:
        [x, y] = [engines[name]["seconds"] for name in (a, b)]
        rounds = [i / j for i, j in zip(x, y)]
        found.append({"of": a, "to": b, "ratio": statistics.median(x) / statistics.median(y), "lowest": min(rounds), "highest": max(rounds)})
    return found


def show(result):
    print(f"\n{result['row']}  ({result['threads']} threads, {result['runs']} runs in turns)")
    print(f"  {'engine':28} {'median s':>9} {'lowest':>9} {'highest':>9} {'share':>7} {'GiB':>6} {'error':>9}")
    for name, told in result["engines"].items():
        share = f"{100 * told['share_of_peak']:.1f} %" if told.get("share_of_peak") else "–"
        memory = f"{told['peak_rss_bytes'] / 2**30:.2f}" if told.get("peak_rss_bytes") else "–"
        error = f"{told['error']:.2e}" if "error" in told else "–"
        seconds = told["seconds"]
        print(f"  {name:28} {told['median_seconds']:9.3f} {min(seconds):9.3f} {max(seconds):9.3f} {share:>7} {memory:>6} {error:>9}")
    for r in result["ratios"]:
        print(f"  {r['of']} takes {r['ratio']:.3f} of {r['to']}'s time ({r['lowest']:.3f} … {r['highest']:.3f}): {1 / r['ratio']:.2f} times as fast")


def build_candle(folder):
    """Builds bench/candle, optimised for this machine as its users would."""
    target = Path(folder).resolve() / "candle-target"
    say("  building candle's program (minutes the first time)")
    subprocess.run(["cargo", "build", "--release", "--quiet", "--locked"], cwd=HERE / "candle", check=True,
                   env={**os.environ, "CARGO_TARGET_DIR": str(target)})
    return target / "release" / "bench-candle"


ROWS = {
    "step-256": (Bench.step, 256),
    "step-512": (Bench.step, 512),
    "step-1024": (Bench.step, 1024),
    "step-256-scaling": (Bench.scaling, 256),
    "vae-512": (Bench.vae, 512),
    "vae-1024": (Bench.vae, 1024),
    "t5": (Bench.t5, None),
    "step-256-candle": (Bench.candle, 256),
    "step-256-sdcpp": (Bench.sdcpp, 256),
}
USUAL = ["step-256", "step-512", "step-1024", "step-256-scaling", "vae-512", "vae-1024", "t5"]


def main():
    words = lambda text: [word for word in text.split(",") if word]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for weights (about 9 GB) and results; kept and used again")
    parser.add_argument("--darkroom", type=Path, default=HERE.parent / "target/release/darkroom", help="the program [%(default)s]")
    parser.add_argument("--rows", type=words, default=USUAL, help=f"of {', '.join(ROWS)} [{','.join(USUAL)}]")
    parser.add_argument("--precisions", type=words, default=["bf16", "int8"], help="of f32, bf16, int8 [bf16,int8]")
    parser.add_argument("--runs", type=int, default=5, help="rounds, the warm-up apart [5]")
    parser.add_argument("--threads", type=int, default=2, help="of every engine [2]")
    parser.add_argument("--again", action="store_true", help="run rows anew that were finished earlier")
    parser.add_argument("--make", action="store_true", help="make all weights and inputs and stop")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--candle", type=Path, help="the program of bench/candle; built without it")
    parser.add_argument("--candle-kinds", type=words, default=["q4_K", "q8_0"], help="of q4_K, q8_0, bf16, f32 [q4_K,q8_0]")
    parser.add_argument("--sdcpp-python", type=Path, help="a Python that has stable-diffusion-cpp-python")
    parser.add_argument("--sdcpp-kinds", type=words, default=["bf16", "q8_0"], help="bf16 and ggml's types [bf16,q8_0]")
    options = parser.parse_args()
    for row in options.rows:
        if row not in ROWS:
            parser.error(f"there is no row '{row}'; {', '.join(ROWS)} are")
    for precision in options.precisions:
        if precision not in ("f32", "bf16", "int8"):
            parser.error(f"there is no precision '{precision}'")
    if "step-256-sdcpp" in options.rows and not options.sdcpp_python:
        parser.error("the row step-256-sdcpp needs --sdcpp-python; bench/README.md says how to build the package")
    options.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(options)
    if options.make:
        make.make_all(bench.files)
        return
    if not options.darkroom.is_file():
        parser.error(f"{options.darkroom} is not there; build it with 'cargo build --release' or name it with --darkroom")
    make.describe(bench.files)
    results, failed = [], []
    for row in options.rows:
        try:
            results.append(bench.run(row))
            if not options.json:
                show(results[-1])
        except (Failed, subprocess.CalledProcessError, OSError) as problem:
            # One engine that does not run is no reason to lose the other rows.
            say(f"{row} failed: {problem}")
            failed.append({"row": row, "problem": str(problem)})
    if options.json:
        print(json.dumps({"rows": results, "failed": failed}, indent=1))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
