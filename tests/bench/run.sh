#!/usr/bin/env bash
# Builds what is measured and measures it: Facet beside llama.cpp. Arguments go to run.py, whose
# --help says which there are.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=deploy/local/packages.sh
source "$root/deploy/local/packages.sh"
# shellcheck source=deploy/local/build.sh
source "$root/deploy/local/build.sh"

case " $* " in
  *" --help "* | *" -h "*) exec python3 "$root/tests/bench/run.py" --help ;;
esac
install_packages "${build_packages[@]}" python3-venv python3-dev
configure_build "$root/build"
run_build "$root/build" facet facet-router facet-worker collectives_bench engine_bench limits_bench
exec python3 "$root/tests/bench/run.py" "$@"
