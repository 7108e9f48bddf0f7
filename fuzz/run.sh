#!/bin/sh
# Builds a fuzzer with the stable compiler and runs it: run.sh TARGET [libFuzzer options].
# The flags are LLVM's coverage instrumentation, as cargo-fuzz passes it, without the sanitizers that need nightly.
set -eu
cd "$(dirname "$0")"
target=$1
shift
host=$(rustc -vV | sed -n 's/^host: //p')
flags="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
flags="$flags -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
flags="$flags -Cllvm-args=-sanitizer-coverage-trace-compares"
# With --target, build scripts and macros are built without these flags.
RUSTFLAGS="$flags" cargo build --release --quiet --target "$host" --bin "$target"
mkdir -p "corpus/$target" "artifacts/$target"
exec "target/$host/release/$target" -dict="$target.dict" -artifact_prefix="artifacts/$target/" "$@" "corpus/$target" "seeds/$target"
