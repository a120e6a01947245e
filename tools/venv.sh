#!/usr/bin/env bash
# Makes the project's own virtual environment and installs requirements/dev.txt in it. Usage: tools/venv.sh DIRECTORY
# Python's venv module needs ensurepip, which Debian keeps in a package of its own: installed when root, else the
# virtualenv wheel does the same without it.
set -euo pipefail
venv=$1

python=
for candidate in "${PYTHON:-python3}" python3.14 python3.13 python3.12 python3.11; do
  if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$candidate; break; fi
done
if [ -z "$python" ]; then
  echo "emp-pipe needs Python 3.11 or newer; name one with  make venv PYTHON=/path/to/python3" >&2
  exit 1
fi

make_venv() { rm -rf "$venv"; "$python" -m venv "$venv" >/dev/null 2>&1 && "$venv/bin/python" -m pip --version >/dev/null 2>&1; }

if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1 && ! make_venv; then
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "Python's venv module is incomplete: installing Debian's python$version-venv"
    { apt-get update -qq && { apt-get install -y -qq --no-install-recommends "python$version-venv" || apt-get install -y -qq python3-venv; }; } \
      </dev/null >/dev/null 2>&1 || true
    make_venv || true
  fi
  if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    rm -rf "$venv"
    if ! "$python" -m pip --version >/dev/null 2>&1; then
      echo "$python has neither venv nor pip: install python$version-venv (Debian, Ubuntu) or python3-pip, then run make again" >&2
      exit 1
    fi
    mkdir -p .cache/virtualenv
    PIP_ROOT_USER_ACTION=ignore "$python" -m pip install --quiet --target .cache/virtualenv virtualenv
    PYTHONPATH=.cache/virtualenv "$python" -m virtualenv --quiet "$venv"
  fi
fi

echo "installing requirements/dev.txt into $venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --requirement requirements/dev.txt
