#!/usr/bin/env bash
# Builds a fuzz target and runs it: fuzz/run.sh TARGET SECONDS [libFuzzer's flags]
#
# SECONDS of 0 runs the files that are named behind it, -1 builds and runs nothing.
# In: the seeds of fuzz/corpus/TARGET. Out: exit code 0 if nothing was found; else an input under
# fuzz/target/artifacts/TARGET. What a run learns is kept in fuzz/target/corpus/TARGET, for the next.
# FUZZ_TARGET_DIR takes the place of fuzz/target; it must be absolute. Needs Rust, stable is enough, and a C++ compiler.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

if (($# < 2)); then
    echo "usage: fuzz/run.sh TARGET SECONDS [FLAG...], TARGET one of: $(ls corpus | xargs)" >&2
    exit 2
fi
target=$1 seconds=$2
shift 2
[[ -f targets/$target.rs ]] || { echo "no target $target: need one of $(ls corpus | xargs)" >&2; exit 2; }

# Always its own folder: these flags would otherwise cost the project's builds their cache.
target_dir="${FUZZ_TARGET_DIR:-$PWD/target}"
mkdir -p "$target_dir/corpus/$target" "$target_dir/artifacts/$target"

# Coverage by LLVM's own pass, as cargo-fuzz asks for it, without the sanitizers that need nightly:
# the transport has no unsafe code. `--target` keeps the flags away from build scripts.
host=$(rustc -vV | sed -n 's/^host: //p')
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing"
export CARGO_TARGET_DIR=$target_dir
cargo build --quiet --locked --target "$host" --bin "$target" ${FUZZ_CARGO_FLAGS:-}
((seconds >= 0)) || exit 0

fuzzer=("$target_dir/$host/debug/$target" "-artifact_prefix=$target_dir/artifacts/$target/"
    -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 -error_exitcode=1)
if ((seconds == 0)); then
    exec "${fuzzer[@]}" "$@"
fi
# A limit around it all, because libFuzzer looks at its clock between inputs only.
exec timeout --kill-after=10 $((seconds + 60)) "${fuzzer[@]}" -max_len=4096 \
    -max_total_time="$seconds" "$@" "$target_dir/corpus/$target" "corpus/$target"
