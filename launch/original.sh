#!/usr/bin/env bash
# Runs one of the original's commands, by its name: with the Python that is active if it has what training needs, else with
# this checkout's .venv. PYTHON=<command or path> is looked at first.
set -euo pipefail
checkout=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)

for python in ${PYTHON:+"$PYTHON"} python python3 "$checkout/.venv/bin/python"; do
  if "$python" -c 'from importlib.util import find_spec
raise SystemExit(not (find_spec("hydra") and find_spec("tensorflow")))' 2>/dev/null; then
    export PYTHONPATH="$checkout${PYTHONPATH:+:$PYTHONPATH}"
    exec "$python" -m resnet.compat "$@"
  fi
done
printf '%s: no Python with the packages of this project here; make one with: bash %q/launch/setup.sh\n' "$1" "$checkout" >&2
exit 1
