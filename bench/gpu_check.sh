#!/usr/bin/env bash
# Everything a GPU can tell, in one call of at most ten minutes, offline: of either backend the gpu
# tests, the op tests and the speed bars, compute-sanitizer, a whole model's time to the first token,
# each room beside its peers. One failure does not stop the others.
#
#   bench/gpu_check.sh [FOLDER]     logs and JSON go to FOLDER (default: build/gpu_check), and all of
#                                   them once more into FOLDER/results.tgz
#
# Works in an environment with the package installed, and in a plain tree whose
# lookaheadkv_kernels/lib/*.so were built elsewhere. PYTHON names the interpreter.
set -uo pipefail
ROOT=$(realpath "$(dirname "$0")/..")
OUT=$(realpath -m "${1:-$ROOT/build/gpu_check}")
PYTHON=${PYTHON:-python3}
mkdir -p "$OUT"
export PYTHONDONTWRITEBYTECODE=1
DEADLINE=$((SECONDS + ${GPU_CHECK_SECONDS:-570}))
NAMES=() RESULTS=() NOTES=()

# Everything runs in a folder of links, which Python looks into first: the benchmarks, which are not
# installed; and the package, unless it is installed, with the oracle as the submodule it becomes.
LINKS=$(mktemp -d)
trap 'rm -rf "$LINKS"' EXIT
cd "$LINKS" || exit 1
ln -s "$ROOT/bench" bench
if ! "$PYTHON" -c 'import lookaheadkv_kernels.python_ref' 2> "$OUT/import.log"; then
  mkdir lookaheadkv_kernels
  ln -s "$ROOT"/lookaheadkv_kernels/* lookaheadkv_kernels/
  ln -s "$ROOT/python_ref" lookaheadkv_kernels/python_ref
fi
export PYTHONPATH="$LINKS${PYTHONPATH:+:$PYTHONPATH}"

# step NAME SECONDS COMMAND...: runs it with its own log; a last line of the log becomes the note.
step() {
  local name=$1 limit=$2 log="$OUT/$1.log" left=$((DEADLINE - SECONDS)) start=$SECONDS code
  shift 2
  NAMES+=("$name")
  if ((left < 10)); then
    RESULTS+=("NOT RUN") NOTES+=("no time left")
    return
  fi
  # An interrupt: pytest still tells what failed so far.
  timeout --signal=INT --kill-after=10 $((limit < left ? limit : left)) "$@" > "$log" 2>&1
  code=$?
  case $code in
    0) RESULTS+=("ok") ;;
    124 | 137) RESULTS+=("TOO LONG") ;;
    *) RESULTS+=("FAILED ($code)") ;;
  esac
  NOTES+=("$((SECONDS - start)) s: $(grep -v '^ *$' "$log" | tail -n 1 | cut -c 1-100)")
}

skip() {
  NAMES+=("$1") RESULTS+=("skipped") NOTES+=("$2")
}

has() { "$PYTHON" -c "import $1" 2> /dev/null; }

step device 40 "$PYTHON" -m bench.gpu_facts --json "$OUT/device.json"
backends=$("$PYTHON" -c 'import lookaheadkv_kernels as lkv; print(*lkv.available_backends())' 2>> "$OUT/import.log")

# available BACKEND: whether it is there, with a line in the table if not.
available() {
  [[ " $backends " == *" $1 "* ]] && return
  skip "$1" "no such backend here, available: ${backends:-none, see import.log}"
  return 1
}

# tests BACKEND KEYWORDS PAGED_TESTS MORE_OP_TESTS...
tests() {
  local backend=$1 keywords=$2 paged=$3 parallel=()
  shift 3
  if ! has pytest || ! has hypothesis; then
    skip "$backend-tests" "pytest and hypothesis are needed"
    return
  fi
  # Most of the time of Triton's tests goes to compiling, on one core each.
  [[ $backend == triton ]] && has xdist && parallel=(-n 8)
  step "$backend-tests" 120 "$PYTHON" -m pytest -q -p no:cacheprovider "${parallel[@]}" -m gpu \
    -k "$keywords" "$ROOT"/tests/ops/test_gpu.py "$ROOT"/tests/cuda/test_cuda_gpu.py \
    "$ROOT"/tests/paged/test_paged_gpu.py
  step "$backend-paged" 60 env LOOKAHEADKV_BACKEND="$backend" "$PYTHON" -m pytest -q \
    -p no:cacheprovider "${parallel[@]}" --cases-per-test 4 "$ROOT/tests/$paged"
  step "$backend-ops" 80 env LOOKAHEADKV_BACKEND="$backend" "$PYTHON" -m pytest -q \
    -p no:cacheprovider "${parallel[@]}" --cases-per-test 12 "$ROOT"/tests/ops/test_ops.py \
    "$ROOT"/tests/ops/test_select.py "$ROOT"/tests/ops/test_gather.py "$ROOT"/tests/ops/test_gradients.py "$@"
}

bars() {
  step "$1-bars" 120 env LOOKAHEADKV_BACKEND="$1" "$PYTHON" -m bench.bars gpu \
    --json "$OUT/$1-bars.json"
}

sanitizers() {
  local sanitizer tool
  sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2> /dev/null | tail -n 1)
  for tool in racecheck memcheck; do
    if [[ -z $sanitizer ]]; then
      skip "cuda-$tool" "compute-sanitizer not found"
      continue
    fi
    step "cuda-$tool" 75 env LOOKAHEADKV_BACKEND=cuda PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
      "$sanitizer" --tool "$tool" --error-exitcode 9 "$PYTHON" -m bench.gpu_small
  done
}

# First what nothing else covers: the compiled kernels, whose steps together have time even if each
# takes all that it may. Races between warps are seen by racecheck alone.
if available cuda; then
  tests cuda "cuda and not triton" paged/test_paged.py
  bars cuda
  sanitizers
fi
# Of the paged tests the ones of Triton's own: it would compile every head dimension and layout of
# the random ones.
if available triton; then
  tests triton triton triton/test_triton_paged.py "$ROOT"/tests/triton/test_triton_kernels.py
  bars triton
fi

# One backend is enough: the first, which is what users get.
if [[ -n $backends && $backends != cpu ]] && has transformers; then
  step ttft 150 "$PYTHON" -m bench.ttft --model llama-3.1-8b --device cuda --rounds 3 \
    --slow-rounds 1 --json "$OUT/ttft.json"
fi
if [[ -n $backends && $backends != cpu ]] && has pytest_benchmark; then
  step suite 100 "$PYTHON" -m pytest -q -p no:cacheprovider --import-mode=append "$ROOT/bench" \
    -k "not -cpu" --prompt 32768 --record "$OUT/suite.json"
fi

{
  echo
  for i in "${!NAMES[@]}"; do
    printf '%-16s %-12s %s\n' "${NAMES[$i]}" "${RESULTS[$i]}" "${NOTES[$i]}"
  done
} | tee "$OUT/summary.txt"
"$PYTHON" - "$OUT" "${NAMES[@]}" -- "${RESULTS[@]}" << 'END'
import json, sys

folder, *rest = sys.argv[1:]
split = rest.index("--")
summary = dict(zip(rest[:split], rest[split + 1 :]))
with open(f"{folder}/summary.json", "w") as file:
    json.dump(summary, file, indent=1)
sys.exit(any(result not in ("ok", "skipped") for result in summary.values()))
END
code=$?
tar -czf "$LINKS/results.tgz" -C "$OUT" --exclude=./results.tgz . && mv "$LINKS/results.tgz" "$OUT"
exit $code
