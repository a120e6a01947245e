#!/usr/bin/env bash
# Makes sure that Rust, the components named as arguments and a C compiler are there, and says how to get what is not.
# Exits 0 when all are, 3 when an optional component is missing (the caller prints "not run"), 1 when nothing can be built.
set -euo pipefail
least=1.88

if ! command -v cargo >/dev/null 2>&1; then
  if [ -x "$HOME/.cargo/bin/cargo" ]; then
    echo "cargo is in ~/.cargo/bin, which is not on PATH: run  . ~/.cargo/env  and try again" >&2
  else
    echo "Rust is missing: install the stable toolchain (at least $least) with rustup, see https://rustup.rs" >&2
  fi
  exit 1
fi

have=$(rustc --version | awk '{print $2}')
if [ "$(printf '%s\n%s\n' "$least" "${have%%-*}" | sort -V | head -n 1)" != "$least" ]; then
  echo "Rust $have is too old: emp-pipe needs at least $least; run  rustup update stable" >&2
  exit 1
fi

if ! command -v cc >/dev/null 2>&1; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "a C compiler is missing (zstd, libdeflate and the linker need one): installing Debian's gcc"
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends gcc libc6-dev; } </dev/null >/dev/null ||
      { echo "installing gcc failed; install a C compiler that answers to the name cc" >&2; exit 1; }
  else
    echo "a C compiler is missing (zstd, libdeflate and the linker need one): install gcc or clang, so that cc is on PATH" >&2
    exit 1
  fi
fi

for component in "$@"; do
  tool=$component
  [ "$component" != rustfmt ] || tool=fmt
  cargo "$tool" --version >/dev/null 2>&1 && continue
  if command -v rustup >/dev/null 2>&1 && rustup component add "$component" </dev/null >/dev/null 2>&1; then continue; fi
  echo "$component is missing; get it with  rustup component add $component" >&2
  exit 3
done
