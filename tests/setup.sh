#!/usr/bin/env bash
# Installs what the tests need beside Rust: real container clients, registries and protocol suites.
#
#   tests/setup.sh            install what is missing, check versions, print where the tools are
#   tests/setup.sh --check    only check; exit 1 and say what is missing
#
# For Debian 12 as root. Debian's packages come from apt; Go programs are built by exact version
# (checksums in go.sum or in Go's checksum database), Python's packages are installed by their checksums, Java's
# servers come from Maven Central by exact version,
# into a cache outside the checkout: ${OUTRIDER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/outrider}/tools.
# A second run takes no time.
# No daemon is started, here or by a package.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/lib.sh
. "$here/lib.sh"

check_only=
[ "${1:-}" = --check ] && check_only=1

crane_version=v0.22.1
oras_version=v1.2.3
h2spec_version=v2.2.1+incompatible
conformance_version=v0.0.0-20230516164017-7fcdf80f3c8b
cargo_deny_version=0.20.2

# command, package, and the beginning of the version that the tests were written against
debian_tools=(
  "docker-registry docker-registry 2.8"
  "skopeo skopeo 1.9"
  "podman podman 4.3"
  "crun crun 1."
  "runc runc 1."
  "containerd containerd 1.6"
  "ctr containerd 1.6"
  "/usr/sbin/dockerd docker.io 20.10"
  "/usr/bin/docker docker.io 20.10"
  "umoci umoci 0.4"
  "/bin/busybox busybox-static 1:1.35"
  "iptables iptables 1.8"
  "curl curl 7.88"
  "openssl openssl 3.0"
  "cc gcc 4:12"
  "c++ g++ 4:12"
  "cmake cmake 3.25"
  "make make 4.3"
  "mount mount 2.38"
  "unshare util-linux 2.38"
  "nsenter util-linux 2.38"
  "ip iproute2 6."
  "faketime faketime 0.9.10"
  "chromium chromium 1"
  "/usr/bin/python3 python3 3.11"
  "/usr/lib/jvm/java-17-openjdk-$(dpkg --print-architecture)/bin/javac openjdk-17-jdk-headless 17."
  "mvn maven 3.8"
  "/usr/lib/rabbitmq/bin/rabbitmq-server rabbitmq-server 3.10"
  "epmd erlang-base 1:25"
)

missing_packages() {
  local entry command package
  {
    for entry in "${debian_tools[@]}"; do
      read -r command package _ <<<"$entry"
      command -v "$command" >/dev/null || printf '%s\n' "$package"
    done
    # It has no command.
    /usr/bin/python3 -c 'import ensurepip' 2>/dev/null || printf 'python3-venv\n'
  } | sort -u
}

install_packages() {
  [ $# -gt 0 ] || return 0
  [ "$(id -u)" = 0 ] || die "missing: $* (run tests/setup.sh as root, or: apt-get install $*)"
  command -v apt-get >/dev/null || die "missing: $* (this script knows only Debian's apt-get)"
  say "installing Debian packages: $*"
  # Packages of daemons start them unless a policy forbids it; these would listen on every interface.
  local policy=/usr/sbin/policy-rc.d made=
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod +x $policy
    made=1
  fi
  local failed=
  { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@"; } \
    >"$logs/apt.log" 2>&1 || failed=1
  [ -z "$made" ] || rm -f $policy
  [ -z "$failed" ] || { tail -20 "$logs/apt.log" >&2; die "apt-get install failed"; }
}

check_packages() {
  local entry command package version have
  for entry in "${debian_tools[@]}"; do
    read -r command package version <<<"$entry"
    command -v "$command" >/dev/null || die "$command is missing (Debian package $package)"
    have=$(dpkg-query -W -f '${Version}' "$package" 2>/dev/null || true)
    case $have in
      "$version"*) ;;
      '') say "note: $command is not from the Debian package $package" ;;
      *) say "note: $package is $have; the tests were written against $version" ;;
    esac
  done
}

# built NAME VERSION: is this very version in the cache?
built() { [ -x "$tools/bin/$1" ] && [ "$(cat "$tools/versions/$1" 2>/dev/null)" = "$2" ]; }

need_go() {
  command -v go >/dev/null || die "Go 1.26 or newer is needed to build $1 (https://go.dev/dl)"
}

# go_module NAME VERSION PACKAGE: build a command by module name and version
go_module() {
  built "$1" "$2" && return 0
  [ -z "$check_only" ] || die "$1 $2 is not in $tools (run tests/setup.sh)"
  need_go "$1"
  say "building $1 $2"
  local out=$tools/build.$1
  rm -rf "$out"
  mkdir -p "$out"
  GOBIN=$out CGO_ENABLED=0 GOFLAGS='-buildvcs=false -trimpath' go install -ldflags='-s -w' "$3@$2" \
    >"$logs/$1.log" 2>&1 || { tail -20 "$logs/$1.log" >&2; die "$1 does not build"; }
  mv "$out/${3##*/}" "$tools/bin/$1"
  rm -rf "$out"
  printf '%s\n' "$2" >"$tools/versions/$1"
}

# go_pinned NAME VERSION FOLDER COMMAND...: build with the go.mod and go.sum of tests/peers/FOLDER
go_pinned() {
  local name=$1 version=$2 folder=$3
  shift 3
  built "$name" "$version" && return 0
  [ -z "$check_only" ] || die "$name $version is not in $tools (run tests/setup.sh)"
  need_go "$name"
  grep -q "$version" "$here/peers/$folder/go.mod" || die "tests/peers/$folder/go.mod is not for $version"
  say "building $name $version"
  (cd "$here/peers/$folder" && CGO_ENABLED=0 GOFLAGS='-mod=readonly -buildvcs=false -trimpath' "$@") \
    >"$logs/$name.log" 2>&1 || { tail -20 "$logs/$name.log" >&2; die "$name does not build"; }
  printf '%s\n' "$version" >"$tools/versions/$name"
}

# checksum FOLDER: of all files in tests/peers/FOLDER
checksum() { (cd "$here/peers/$1" && find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum | cut -d ' ' -f 1); }

# go_own FOLDER NAME=PACKAGE...: build programs of tests/peers/FOLDER, which has a go.mod and a go.sum
go_own() {
  local folder=$1 sum each name
  shift
  sum=$(checksum "$folder")
  for each in "$@"; do
    name=${each%%=*}
    built "$name" "$sum" && continue
    [ -z "$check_only" ] || die "$name is not in $tools, or not of this checkout (run tests/setup.sh)"
    need_go "$name"
    say "building $name"
    (cd "$here/peers/$folder" && CGO_ENABLED=0 GOFLAGS='-mod=readonly -buildvcs=false -trimpath' \
      go build -ldflags='-s -w' -o "$tools/bin/$name" "./${each#*=}") \
      >"$logs/$name.log" 2>&1 || { tail -20 "$logs/$name.log" >&2; die "$name does not build"; }
    printf '%s\n' "$sum" >"$tools/versions/$name"
  done
}

# python_clients: a Python of its own in $tools/python with tests/peers/python/requirements.txt, and the
# examples of aioquic's source archive in $tools/python/aioquic-examples
python_clients() {
  local file=$here/peers/python/requirements.txt sum python=$tools/python
  sum=$(sha256sum "$file" | cut -d ' ' -f 1)
  [ -x "$python/bin/python" ] && [ "$(cat "$tools/versions/python" 2>/dev/null)" = "$sum" ] && return 0
  [ -z "$check_only" ] || die "the Python clients are not in $python (run tests/setup.sh)"
  say "installing the Python clients"
  rm -rf "$python" "$tools/versions/python"
  {
    /usr/bin/python3 -m venv "$python" &&
      "$python/bin/pip" install --disable-pip-version-check --no-deps --require-hashes -r "$file" &&
      awk '/^[a-z]/ { on = /^aioquic==/ } on' "$file" >"$python/aioquic.txt" &&
      "$python/bin/pip" download --disable-pip-version-check --no-deps --require-hashes --no-binary :all: \
        --no-build-isolation --dest "$python" -r "$python/aioquic.txt" &&
      tar -xzf "$python"/aioquic-*.tar.gz -C "$python" &&
      mv "$python"/aioquic-*/examples "$python/aioquic-examples"
  } >"$logs/python.log" 2>&1 || { tail -20 "$logs/python.log" >&2; die "the Python clients cannot be installed"; }
  printf '%s\n' "$sum" >"$tools/versions/python"
}

# neo4j_server: Neo4j's libraries in $tools/neo4j/lib by tests/peers/neo4j/pom.xml (Maven checks what it
# downloads), and the server of that folder in $tools/neo4j/classes
neo4j_server() {
  local sum folder=$tools/neo4j java
  sum=$(checksum neo4j)
  [ "$(cat "$tools/versions/neo4j" 2>/dev/null)" = "$sum" ] && [ -e "$folder/classes/Server.class" ] && return 0
  [ -z "$check_only" ] || die "Neo4j is not in $folder, or not of this checkout (run tests/setup.sh)"
  say "installing Neo4j"
  java=/usr/lib/jvm/java-17-openjdk-$(dpkg --print-architecture)
  rm -rf "$folder" "$tools/versions/neo4j"
  mkdir -p "$folder"
  {
    JAVA_HOME=$java mvn --batch-mode --strict-checksums --quiet -Dmaven.repo.local="$tools/maven" \
      -f "$here/peers/neo4j/pom.xml" dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$folder/lib" &&
      "$java/bin/javac" -cp "$folder/lib/*" -d "$folder/classes" "$here/peers/neo4j/Server.java"
  } >"$logs/neo4j.log" 2>&1 || { tail -20 "$logs/neo4j.log" >&2; die "Neo4j cannot be installed"; }
  ln -sfn "$java" "$folder/java"
  printf '%s\n' "$sum" >"$tools/versions/neo4j"
}

# maven_peer NAME: the jars that tests/peers/NAME/pom.xml names, in $tools/NAME
maven_peer() {
  local name=$1 sum
  sum=$(checksum "$name")
  [ -d "$tools/$name" ] && [ "$(cat "$tools/versions/$name" 2>/dev/null)" = "$sum" ] && return 0
  [ -z "$check_only" ] || die "$name is not in $tools (run tests/setup.sh)"
  say "fetching $name"
  rm -rf "${tools:?}/$name"
  mvn -B -q -Dmaven.repo.local="$tools/maven" -f "$here/peers/$name/pom.xml" dependency:copy-dependencies \
    -DincludeScope=runtime -DoutputDirectory="$tools/$name" \
    >"$logs/$name.log" 2>&1 || { tail -20 "$logs/$name.log" >&2; die "$name cannot be fetched"; }
  printf '%s\n' "$sum" >"$tools/versions/$name"
}

# cargo_tool NAME VERSION: a cargo subcommand. Without optimisation: it builds in half the time, and
# the tool runs for a second.
cargo_tool() {
  built "$1" "$2" && return 0
  [ -z "$check_only" ] || die "$1 $2 is not in $tools (run tests/setup.sh)"
  say "building $1 $2"
  env -u CARGO_TARGET_DIR CARGO_PROFILE_DEV_DEBUG=0 cargo install --debug --locked --quiet --root "$tools/cargo" --version "$2" "$1" \
    >"$logs/$1.log" 2>&1 || { tail -20 "$logs/$1.log" >&2; die "$1 does not build"; }
  ln -sf "../cargo/bin/$1" "$tools/bin/$1"
  printf '%s\n' "$2" >"$tools/versions/$1"
}

mkdir -p "$tools/bin" "$tools/versions" "$logs"
# One at a time: two runs side by side would write the same files.
exec 9>"$tools/lock"
flock 9

command -v cargo >/dev/null || die "Rust is missing: rust-version of Cargo.toml or newer (https://rustup.rs)"

if [ -z "$check_only" ]; then
  mapfile -t packages < <(missing_packages)
  install_packages ${packages[@]+"${packages[@]}"}
fi
check_packages

go_module crane "$crane_version" github.com/google/go-containerregistry/cmd/crane
go_module h2spec "$h2spec_version" github.com/summerwind/h2spec/cmd/h2spec
go_pinned oras "$oras_version" oras \
  go build -ldflags='-s -w' -o "$tools/bin/oras" oras.land/oras/cmd/oras
go_pinned oci-conformance "$conformance_version" conformance \
  go test -c -o "$tools/bin/oci-conformance" github.com/opencontainers/distribution-spec/conformance
go_own http3 h3get=get h3pull=pull
maven_peer kafka
python_clients
neo4j_server
if [ "${1:-}" = --lint ]; then
  cargo_tool cargo-deny "$cargo_deny_version"
fi

say "tools are ready in $tools/bin"
