"""From npm packages to a finished model folder, in one command:

    python tools/demo-model/build.py --work WORK

Stages run in order and are skipped when finished; an interrupted one goes on from its last checkpoint.
`--stages` picks some of them; `--set NAME=NUMBER` overrides a number of config.py.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import autoencoder
import card
import data
import distil
import evaluate
import export
import flow
import text
from config import Config

STAGES = {
    "data": data.fetch,
    "tokenizers": text.train_tokenizers,
    "text": text.train_encoders,
    "autoencoder": autoencoder.train,
    "flow": flow.train,
    "distil": distil.train,
    "export": export.run,
    "evaluate": evaluate.run,
    "card": card.run,
}
HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for downloads and checkpoints")
    parser.add_argument("--out", type=Path, default=HERE.parents[1] / "crates/flux/assets/pocket")
    parser.add_argument("--stages", default=",".join(STAGES), help="default: %(default)s")
    parser.add_argument("--pause-file", default="", help="training sleeps while this file exists")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    args = parser.parse_args()
    cfg = Config(work=args.work, out=args.out, pause_file=args.pause_file)
    for name, value in (item.split("=") for item in args.set):
        cfg = replace(cfg, **{name: type(getattr(cfg, name))(value)})
    for stage in args.stages.split(","):
        done = cfg.work / f"{stage}.done"
        if not done.exists():
            print(f"== {stage}", flush=True)
            STAGES[stage](cfg)
            done.touch()


if __name__ == "__main__":
    main()
