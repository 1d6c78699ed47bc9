# Sourced by tests/setup.sh, tests/run and .ci/run: where things are kept, and how to speak.
# shellcheck shell=bash disable=SC2034

cache=${OUTRIDER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/outrider}
tools=$cache/tools
logs=$cache/logs

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
  say "$*"
  exit 1
}
