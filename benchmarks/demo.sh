#!/bin/sh
# The demo: tune the shipped model on the CPU into a database of its own, then ask again without measuring.
set -eu
: "${PYTHON:=python3}"
cd "$(dirname "$0")/.."
mkdir -p .demo
export HF_HUB_OFFLINE=1
export ADVISOR_DATABASE_URL="${ADVISOR_DATABASE_URL:-sqlite:///.demo/advisor.db}"
set -- tests/models/causal --lengths 96 --padding 0.5 --batch 8 --batches 4 --quality exact --device cpu
"$PYTHON" -m advisor tune "$@" --format json > .demo/tuned.json
echo
echo "\$ advisor suggest $*"
exec "$PYTHON" -m advisor suggest "$@"
