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

# Sets CARGO_TARGET_DIR to a folder outside the checkout that survives between runs, and that can be
# written to.
use_target() {
  local wanted=${OUTRIDER_TARGET:-${CARGO_TARGET_DIR:-$cache/target}}
  if ! mkdir -p "$wanted" 2>/dev/null || [ ! -w "$wanted" ]; then
    say "$wanted cannot be written to"
    wanted=$(mktemp -d "${TMPDIR:-/tmp}/outrider-target.XXXXXX")
    say "building in $wanted instead"
  fi
  export CARGO_TARGET_DIR=$wanted
}

# build_or_rebuild COMMAND...: a build that fails in a folder of earlier builds, and not by an error in
# the code, is done once more in an empty one.
build_or_rebuild() {
  local log=$logs/build.log
  mkdir -p "$logs"
  "$@" 2>&1 | tee "$log" && return 0
  grep -qE '^(error\[E[0-9]+\]|error: could not compile `outrider|error: .*(Cargo\.lock|lock file))' "$log" && return 1
  [ -d "$CARGO_TARGET_DIR/debug" ] || return 1
  say "the build failed, and not by an error in the code: once more from nothing"
  rm -rf "$CARGO_TARGET_DIR/debug"
  "$@"
}
