#!/usr/bin/env bash
# Runs the tests. Arguments go to pytest, which sees them from the checkout: test.sh tests/resnet/optim/test_schedule.py -k warm
set -euo pipefail
checkout=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)

bash "$checkout/launch/setup.sh" test
cd -- "$checkout"
exec .venv/bin/python -m pytest "$@"
