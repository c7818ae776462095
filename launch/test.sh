#!/usr/bin/env bash
# Runs the tests. Arguments go to pytest, which sees them from the checkout: test.sh tests/resnet/optim/test_schedule.py -k warm
# `test.sh python=3.13` runs them in .venv-3.13, and makes it first.
set -euo pipefail
checkout=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)

venv=.venv
words=(test)
if [[ ${1-} == python=* ]]; then
  venv=.venv-${1#*=}
  words+=("$1")
  shift
fi
bash "$checkout/launch/setup.sh" "${words[@]}"
cd -- "$checkout"
exec "$venv/bin/python" -m pytest "$@"
