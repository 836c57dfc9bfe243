# Configures and builds, doing nothing twice. To be sourced.
# shellcheck shell=bash

facet_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

# The build's shape: what cmake is told and which folders there are to find. ninja itself notices
# every change inside a known CMakeLists.txt, but not a new one.
build_fingerprint() {
  {
    printf '%s\n' "$@"
    cd "$facet_root" && find . -name CMakeLists.txt -not -path './build*' -not -path './.cache/*' | sort
  } | sha256sum
}

# configure_build DIR [CMAKE_ARGUMENT...]: once per change of shape. Output on stderr.
configure_build() {
  local dir=$1
  shift
  local fingerprint
  fingerprint=$(build_fingerprint "$@")
  if [[ -f $dir/build.ninja && $(cat "$dir/facet-fingerprint" 2>/dev/null) == "$fingerprint" ]]; then
    return
  fi
  local -a launcher=()
  if command -v ccache >/dev/null; then
    launcher=(-DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
  fi
  # A folder keeps what an earlier call has said: "$@" comes after what is so by default.
  cmake -S "$facet_root" -B "$dir" -G Ninja "${launcher[@]}" -DFACET_JOIN=OFF "$@" >&2
  echo "$fingerprint" >"$dir/facet-fingerprint"
}

# run_build DIR [TARGET...]: one build of a folder at a time. Output on stderr.
run_build() {
  local dir=$1
  shift
  flock "$dir" ninja -C "$dir" "$@" >&2
}
