#!/bin/sh
# The demo: tune the shipped model on the CPU into a database of its own, then ask again without measuring.
set -eu
: "${PYTHON:=python3}"
cd "$(dirname "$0")/.."
mkdir -p .demo
export HF_HUB_OFFLINE=1
unset OMP_NUM_THREADS  # make's own, for the tests: a command that is printed has to name the threads where one is typed
export ADVISOR_DATABASE_URL="${ADVISOR_DATABASE_URL:-sqlite:///$PWD/.demo/advisor.db}"
# One thread: more of them wait for one another where anything else runs, and the demo is to work beside anything.
set -- tests/models/causal --lengths 96 --padding 0.5 --batch 8 --batches 4 --quality exact --device cpu --threads 1
"$PYTHON" -m advisor tune "$@" --format json > .demo/tuned.json
# What is printed is typed: with the database that it was measured into, and with the command that made it.
bin=$(cd "$(dirname "$(command -v "$PYTHON")")" && pwd)
echo
echo "\$ export ADVISOR_DATABASE_URL='$ADVISOR_DATABASE_URL' PATH=\"$bin:\$PATH\""
echo "\$ advisor suggest $*"
exec "$PYTHON" -m advisor suggest "$@"
