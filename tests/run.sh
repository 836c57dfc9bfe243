#!/usr/bin/env bash
# Installs what is missing, builds, and runs the tests. The last line of output is
# "N passed, N failed", counted in test cases; the exit status is 0 only if none failed.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=deploy/local/packages.sh
source "$root/deploy/local/packages.sh"
# shellcheck source=deploy/local/build.sh
source "$root/deploy/local/build.sh"

usage() {
  cat <<'HELP'
tests/run.sh [options] [REGEX]

  REGEX                  only test binaries whose name matches
  --sanitize LIST        build with address,undefined or with thread. Thread sanitizer knows neither
                         gRPC nor absl::Mutex: it runs what carries the label tsan
  --exclude-label LABEL  leave tests with this label out
  --fuzz SECONDS         run the fuzz targets instead, each for so long
  --bench                run the benchmark instead: tests/bench/run.sh, which has options of its own
  --gpu                  only the tests of the CUDA backend on this machine's GPUs, of which one
                         must be there
  --jobs N               tests at a time (default 2)
  --from-nothing         compile each test's sources as one: quicker in a fresh clone, slower after a
                         change. The sanitizers' builds do so with all sources

Models are fetched once (deploy/local/fetch_models.sh says where to); FACET_MODEL_DIR points
elsewhere.
HELP
}

misuse() {
  echo "tests/run.sh: $1 (see --help)" >&2
  exit 2
}

sanitize=
gpu=
from_nothing=
fuzz_seconds=
bench=
jobs=2
selection=() # what ctest is told about which tests to run

parse_options() {
  while (($# > 0)); do
    case $1 in
      --help | -h) usage && exit 0 ;;
      --bench) bench=1 && shift && continue ;;
      --from-nothing) from_nothing=1 && shift && continue ;;
      --gpu) gpu=1 && selection+=(-R '_gpu_test$') && shift && continue ;;
      --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
      --*) ;;
      *) selection+=(-R "$1") && shift && continue ;;
    esac
    (($# > 1)) || misuse "'$1' is unknown or lacks its value"
    case $1 in
      --sanitize) sanitize=$2 ;;
      --exclude-label) selection+=(-LE "$2") ;;
      --fuzz) fuzz_seconds=$2 ;;
      --jobs) jobs=$2 ;;
      *) misuse "'$1' is unknown" ;;
    esac
    shift 2
  done
  case $sanitize in
    "" | address,undefined | thread) ;;
    *) misuse "--sanitize is address,undefined or thread" ;;
  esac
  [[ -z $gpu || -z $sanitize ]] || misuse "no sanitizer knows the GPUs' code"
  [[ $fuzz_seconds =~ ^[0-9]*$ && $jobs =~ ^[1-9][0-9]*$ ]] || misuse "not a number"
}

# Sets `build` and configures it.
prepare_build() {
  local -a arguments=()
  build=$root/build
  case $sanitize in
    address,undefined)
      build=$root/build-asan
      arguments=('-DFACET_SANITIZE=address,undefined' -DFACET_JOIN=ON)
      ;;
    thread)
      build=$root/build-tsan
      arguments=(-DFACET_SANITIZE=thread -DFACET_JOIN=ON -DFACET_SERVICES=OFF)
      selection+=(-L '^tsan$')
      ;;
    *) [[ -z $from_nothing ]] || arguments=(-DFACET_JOIN=TESTS) ;;
  esac
  configure_build "$build" "${arguments[@]}"
}

# The selected tests' names.
selected_tests() {
  ctest --test-dir "$build" -N "${selection[@]}" | sed -n 's/^ *Test *#[0-9]*: //p'
}

# Builds everything for a whole run, only what is needed for a part of one.
build_tests() {
  if ((${#selection[@]} == 0)); then
    run_build "$build"
    return
  fi
  local -a targets
  mapfile -t targets < <(comm -12 <(selected_tests | sort) \
    <(ninja -C "$build" -t targets all | sed 's/: .*//' | sort))
  ((${#targets[@]} == 0)) || run_build "$build" "${targets[@]}"
}

run_tests() {
  local results=$build/test-results
  rm -rf "$results"
  mkdir -p "$results"
  # A report that gtest writes per binary tells the cases; ctest's tells who crashed or hung and what
  # it said last.
  GTEST_OUTPUT="xml:$results/" ctest --test-dir "$build" "${selection[@]}" --parallel "$jobs" \
    --output-on-failure --no-tests=error --test-output-truncation head \
    --output-junit "$results/ctest.xml" || true
  python3 "$root/tests/summarize.py" "$results"
}

run_fuzzers() {
  build=$root/build-fuzz
  CC=clang CXX=clang++ configure_build "$build" -DFACET_FUZZ=ON -DFACET_JOIN=ON -DFACET_SERVICES=OFF \
    -DFACET_SANITIZE=address,undefined -DCMAKE_CXX_FLAGS=-fsanitize=fuzzer-no-link
  local -a fuzzers
  mapfile -t fuzzers < <(ninja -C "$build" -t targets all | sed -n 's|^bin/\([a-z0-9_]*_fuzz\): .*|\1|p')
  ((${#fuzzers[@]} > 0)) || { echo "there are no fuzz targets" >&2 && return 1; }
  run_build "$build" "${fuzzers[@]}"
  local passed=0 failed=0 fuzzer
  for fuzzer in "${fuzzers[@]}"; do
    local found=$build/corpus/$fuzzer seeds=$root/tests/fuzz/seeds/$fuzzer
    mkdir -p "$found"
    local -a corpora=("$found")
    [[ ! -d $seeds ]] || corpora+=("$seeds")
    echo "--- $fuzzer"
    if "$build/bin/$fuzzer" -max_total_time="$fuzz_seconds" -timeout=10 -rss_limit_mb=2048 \
      -verbosity=0 -print_final_stats=1 -artifact_prefix="$build/$fuzzer-" "${corpora[@]}"; then
      passed=$((passed + 1))
    else
      failed=$((failed + 1))
    fi
  done
  echo "$passed passed, $failed failed"
  ((failed == 0))
}

# Prints the path of a Python that has kubernetes-validate; nothing where PyPI cannot be reached.
# Made once per list of requirements.
manifest_python() {
  local wanted=$root/tests/deploy/manifests.requirements.txt
  local venv=${FACET_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/facet}/manifests
  mkdir -p "$venv"
  exec {lock}>"$venv.lock"
  flock "$lock" # somebody else may be making it
  if ! cmp -s "$wanted" "$venv/ready"; then
    install_packages python3-venv
    if ! python3 -m venv --clear "$venv" >&2 ||
      ! "$venv/bin/pip" install --disable-pip-version-check -q --no-deps --only-binary :all: \
        --requirement "$wanted" >&2; then
      echo "kubernetes-validate cannot be had: no schema is checked" >&2
      return
    fi
    cp "$wanted" "$venv/ready"
  fi
  exec {lock}>&-
  echo "$venv/bin/python"
}

# What tests want beside a build: the real models, and what checks Kubernetes' manifests. Those of
# the GPUs want neither.
prepare_data() {
  [[ -z $gpu ]] || return 0
  "$root/deploy/local/fetch_models.sh" gemma3 smollm2 >&2
  export FACET_MODEL_DIR=${FACET_MODEL_DIR:-$root/.cache/models}
  [[ -n $sanitize ]] || export FACET_MANIFEST_PYTHON=${FACET_MANIFEST_PYTHON:-$(manifest_python)}
}

# With --gpu a test that finds no GPU fails, and so does a build that has no such tests.
demand_gpu_tests() {
  export FACET_GPU=1
  [[ -n $(selected_tests) ]] || echo "there are no tests of GPUs: CMake found no nvcc" >&2
}

parse_options "$@"
install_packages "${build_packages[@]}" "${test_packages[@]}"
export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_stack_use_after_return=1:strict_string_checks=1}
export UBSAN_OPTIONS=${UBSAN_OPTIONS:-print_stacktrace=1:halt_on_error=1}
export TSAN_OPTIONS=${TSAN_OPTIONS:-halt_on_error=1:second_deadlock_stack=1}
if [[ -n $fuzz_seconds ]]; then
  run_fuzzers
  exit
fi
if [[ -n $bench ]]; then
  exec "$root/tests/bench/run.sh"
fi
prepare_data
prepare_build
[[ -z $gpu ]] || demand_gpu_tests
build_tests
run_tests
