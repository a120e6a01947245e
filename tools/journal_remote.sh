#!/usr/bin/env bash
# Sees to systemd-journal-remote for the tests of the journal, which make journal files with it. Usage: tools/journal_remote.sh VENV
# The system's; else Debian's package, unpacked into the virtual environment: nothing is installed, so no service is either. Where there is
# none those tests are not run, and pytest says why: exits 0 always.
set -euo pipefail
venv=$(cd "$1" && pwd)
into=$venv/journal-remote

for place in /lib/systemd /usr/lib/systemd "$into/lib/systemd" "$into/usr/lib/systemd"; do
  if [ -x "$place/systemd-journal-remote" ]; then exit 0; fi
done

if command -v journalctl >/dev/null 2>&1 && command -v apt-get >/dev/null 2>&1 && command -v dpkg >/dev/null 2>&1; then
  version=$(dpkg-query -W -f '${Version}' systemd 2>/dev/null || true)
  fetched=$(mktemp -d)
  trap 'rm -rf "$fetched"' EXIT
  fetch() { (cd "$fetched" && timeout 120 apt-get download "$1" </dev/null >/dev/null 2>&1); }
  if { fetch "systemd-journal-remote=$version" || fetch systemd-journal-remote; } && fetch libmicrohttpd12; then
    mkdir -p "$into"
    for package in "$fetched"/*.deb; do dpkg -x "$package" "$into"; done
    exit 0
  fi
fi

echo "not run: the tests of the journal that make journal files; there is no systemd-journal-remote (Debian has a package of that name)"
