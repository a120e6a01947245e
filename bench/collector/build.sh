#!/usr/bin/env bash
# Builds the peer of the benchmarks into .cache/collector/otelcol-bench, unless it is there for this manifest already.
# Needs Go; takes some minutes on two cores. Without Go it says so and ends with status 3: the cases with a peer are then not run.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${here%/bench/collector}/.cache/collector
binary=$cache/otelcol-bench
version=v0.165.0

if [ -x "$binary" ] && cmp -s "$here/manifest.yaml" "$cache/manifest.yaml"; then
  echo "$binary"
  exit 0
fi
if ! command -v go >/dev/null; then
  echo "the Collector is not built: Go is not installed (Debian: golang-go, or a newer one)" >&2
  exit 3
fi
mkdir -p "$cache"
if [ ! -x "$cache/builder" ]; then
  GOBIN=$cache CGO_ENABLED=0 nice go install "go.opentelemetry.io/collector/cmd/builder@$version" >&2
fi
# The manifest names no output folder, so that it holds no path of this machine.
sed "s|^dist:|dist:\n  output_path: $cache/source|" "$here/manifest.yaml" >"$cache/manifest-with-output.yaml"
rm -rf "$cache/profiles" && cp -r "$here/profiles" "$cache/profiles"
CGO_ENABLED=0 nice "$cache/builder" --config "$cache/manifest-with-output.yaml" >&2
mv "$cache/source/otelcol-bench" "$binary"
cp "$here/manifest.yaml" "$cache/manifest.yaml"
echo "$binary"
