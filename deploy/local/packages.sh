# Debian 12's packages that Facet needs, and how to install what is missing. To be sourced.
# shellcheck shell=bash disable=SC2034  # who sources it uses the lists

build_packages=(
  g++ cmake ninja-build pkg-config ccache
  libabsl-dev libfmt-dev libspdlog-dev libpcre2-dev libxxhash-dev libhwloc-dev
  libgtest-dev libgmock-dev libbenchmark-dev
  libgrpc-dev libgrpc++-dev libprotobuf-dev protobuf-compiler protobuf-compiler-grpc
  libssl-dev libc-ares-dev libre2-dev zlib1g-dev
  prometheus-cpp-dev libboost1.81-dev libboost-context1.81-dev
  python3 ca-certificates
)
# What the binaries load; the rest comes with these. kubernetes_test.py holds it against ldd.
runtime_packages=(
  libabsl20220623 libfmt9 libspdlog1.10 libpcre2-8-0 libxxhash0 libhwloc15 libgrpc++1.51 libprotobuf32
  libssl3 libprometheus-cpp-core1.0
)
# promtool checks the metrics; clang has libFuzzer; yaml reads the manifests; patch plants the mutation
# gate's faults.
test_packages=(prometheus clang libclang-rt-14-dev python3-yaml patch)

# Runs a command as root.
as_root() {
  if [[ $(id -u) == 0 ]]; then
    "$@"
  else
    sudo "$@"
  fi
}

# install_packages NAME...: installs those that are missing; says so on stderr.
install_packages() {
  local -a missing=()
  local name installed
  installed=" $(dpkg-query -W -f '${db:Status-Status}:${Package} ' "$@" 2>/dev/null || true)"
  for name in "$@"; do
    [[ $installed == *" installed:$name "* ]] || missing+=("$name")
  done
  [[ ${#missing[@]} == 0 ]] && return
  echo "installing ${missing[*]}" >&2
  local -a apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=600)
  as_root "${apt[@]}" update >&2
  as_root "${apt[@]}" install -y --no-install-recommends "${missing[@]}" >&2
}
