#!/usr/bin/env bash
# Builds the native core into python/emp_pipe and installs emp-pipe (editable) in the virtual environment. Usage: tools/build.sh VENV PROFILE
# On a terminal cargo's own progress is shown; otherwise the output is kept in .cache/build.log and printed only on failure.
set -euo pipefail
venv=$(cd "$1" && pwd)
profile=$2
mkdir -p .cache
echo "building the native core, profile $profile (the first time takes a few minutes)"
build=(env PIP_QUIET=1 VIRTUAL_ENV="$venv" "$venv/bin/maturin" develop --profile "$profile" --locked)
if [ -t 2 ]; then
  "${build[@]}" >.cache/build.log
elif ! "${build[@]}" >.cache/build.log 2>&1; then
  tail -n 60 .cache/build.log >&2
  exit 1
fi
