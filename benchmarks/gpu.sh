#!/usr/bin/env bash
# All that a machine with a GPU is to run, in less than nine minutes, most valuable first:
#
#   benchmarks/gpu.sh --out DIR
#
# builds fastdiff for this GPU alone (FASTDIFF_BUILD=cuda, CUDAARCHS), runs the tests on CUDA beside compute-sanitizer's memcheck and
# racecheck, times every op and a U-Net against torch, then runs the other tests on the CPU. A stage that fails or overruns is
# recorded, and the next one goes on; the exit code is 0 where all passed. Nothing is installed outside of build/gpu. DIR gets:
#
#   summary.txt     a line for each stage, as it ends            ops.csv, unet.csv   rows of results, as they are measured
#   log.txt         what the stages said                         sanitizer.txt       what compute-sanitizer said
#
# To keep the results: cp DIR/ops.csv benchmarks/results/gpu/ops-NAME.csv, unet.csv likewise, and python benchmarks/report.py.
# --device cpu is a trial run of the same code at tiny sizes, for a machine without a GPU. PYTHON names the interpreter,
# FASTDIFF_COMMIT the commit where there is no repository.
set -uo pipefail
cd "$(dirname "$0")/.."

out="" device=cuda seconds=530
usage() { echo "usage: $0 --out DIR [--device cuda|cpu] [--seconds 530]" >&2; exit 2; }
while [ $# -gt 0 ]; do
  [ $# -ge 2 ] || usage
  case $1 in
    --out) out=$2 ;;
    --device) device=$2 ;;
    --seconds) seconds=$2 ;;
    *) usage ;;
  esac
  shift 2
done
[ -n "$out" ] || usage
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2

python=${PYTHON:-python3}
site=$PWD/build/gpu/site
export FASTDIFF_BUILD_DIR=$PWD/build/gpu/objects PYTHONPATH=$site PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
export TORCHINDUCTOR_CACHE_DIR=$PWD/build/gpu/inductor TRITON_CACHE_DIR=$PWD/build/gpu/triton
cores=$(nproc)
if [ "$device" = cpu ]; then
  export FASTDIFF_BUILD=cpu FASTDIFF_TEST_DEVICE=cpu
  export TORCHDYNAMO_DISABLE=1 # compiling takes minutes on a small machine
  tiny=(--tiny --device cpu)
else
  export FASTDIFF_BUILD=cuda CUDAARCHS=${CUDAARCHS:-90a-real} FASTDIFF_TEST_DEVICE=cuda
  tiny=()
fi

: >"$out/summary.txt" && : >"$out/log.txt"
failed=0
left() { echo $((seconds - SECONDS)); }

record() { # record NAME START RC
  local word=passed
  [ "$3" -eq 0 ] || word="failed ($3)"
  [ "$3" -eq 124 ] || [ "$3" -eq 137 ] && word="ran out of time"
  [ "$3" -eq 0 ] || failed=1
  printf '%-28s %4d s  %s\n' "$1" $((SECONDS - $2)) "$word" | tee -a "$out/summary.txt"
}

run() { # run LIMIT COMMAND...: under a time limit, and never past the end of all
  local limit=$1
  shift
  [ "$limit" -lt "$(left)" ] || limit=$(left)
  [ "$limit" -gt 5 ] || return 124
  timeout --signal=INT --kill-after=8 "$limit" "$@" # so that pytest still says what had failed by then
}

stage() { # stage NAME LIMIT COMMAND...
  local name=$1 limit=$2 start=$SECONDS rc
  shift 2
  printf '\n=== %s\n' "$name" | tee -a "$out/log.txt"
  run "$limit" "$@" 2>&1 | tee -a "$out/log.txt" | tail -n 60
  rc=${PIPESTATUS[0]}
  record "$name" "$start" "$rc"
  return "$rc"
}

build() {
  rm -rf "$site"
  "$python" -m pip install --quiet --no-build-isolation --no-deps --target "$site" . &&
    (cd build && "$python" -c 'import fastdiff; from fastdiff import _C, ops; print(fastdiff.__file__, _C.build_info(), ops.native)')
}

tests() { # -P: else Python would find the package of the sources before the one that was built
  "$python" -P -m pytest -v --tb=short -rfE -p no:cacheprovider --durations=5 "$@"
}

sanitizer() { # memory errors, then races; each of a small set of calls
  local tool rc=0
  command -v compute-sanitizer >/dev/null || { echo "there is no compute-sanitizer"; return 1; }
  for tool in memcheck racecheck; do
    echo "--- $tool"
    timeout --kill-after=5 "$1" compute-sanitizer --tool "$tool" --error-exitcode 9 "$python" benchmarks/gpu_calls.py --at-most 6 || rc=$?
  done
  return "$rc"
}

doctor() { "$python" -P -m fastdiff doctor; }

export -f build tests sanitizer doctor
export python site

{
  date -u
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null || echo "there is no nvidia-smi"
  "$python" -c 'import sys, torch; print(sys.version, torch.__version__, torch.version.cuda, torch.cuda.is_available())'
} 2>&1 | tee -a "$out/log.txt"

if ! stage "build" 200 bash -c build; then
  echo "nothing else can run" | tee -a "$out/summary.txt"
  exit 1
fi

sanitizer_pid="" sanitizer_start=$SECONDS
if [ "$device" = cuda ]; then # beside the tests: neither is timed
  (run 150 bash -c 'sanitizer 70' 2>&1 | tail -c 500000 >"$out/sanitizer.txt"; exit "${PIPESTATUS[0]}") &
  sanitizer_pid=$!
  stage "tests on CUDA" 170 bash -c "tests -n $((cores > 5 ? cores - 4 : 1)) -m cuda tests/cuda tests/ops"
else
  stage "calls for a sanitizer" 60 "$python" benchmarks/gpu_calls.py --device cpu --at-most 2
  stage "tests of CUDA, on the CPU" 170 bash -c 'tests -x tests/cuda -k "memory or models"'
fi
if [ -n "$sanitizer_pid" ]; then
  wait "$sanitizer_pid"
  record "compute-sanitizer" "$sanitizer_start" $?
  stage "doctor" 40 bash -c doctor # after the tests, for which Triton has compiled what it needs
  grep -aE "^---|ERROR SUMMARY|RACECHECK SUMMARY|Error:|Device not supported" "$out/sanitizer.txt" | head -20 | tee -a "$out/log.txt"
fi

spare=$(($(left) - 90)) # for the U-Net
stage "every op against torch" $((spare > 20 ? spare : 20)) "$python" benchmarks/gpu_ops.py --out "$out/ops.csv" \
  --seconds $((spare > 60 ? (spare > 190 ? 170 : spare - 20) : 40)) "${tiny[@]}"
stage "U-Net against torch" 110 "$python" benchmarks/gpu_unet.py --out "$out/unet.csv" --seconds 80 "${tiny[@]}"
if [ "$device" = cuda ] && [ "$(left)" -gt 30 ]; then # what a machine without a GPU has run too, with other versions
  export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=
  stage "tests on the CPU" 300 bash -c "tests -q -n $cores -m 'not cuda' tests/ops tests/nn tests/models tests/diffusion"
else
  printf '%-28s    - s  left out\n' "tests on the CPU" | tee -a "$out/summary.txt"
fi

printf '\n=== summary after %d s\n' "$SECONDS"
cat "$out/summary.txt"
[ -s "$out/ops.csv" ] && "$python" benchmarks/report.py --table "$out/ops.csv"
exit "$failed"
