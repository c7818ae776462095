#!/usr/bin/env bash
# From a fresh clone to a trained ResNet-50, in minutes and without a download. Overrides pass through: quickstart.sh seed=2
set -euo pipefail
checkout=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)

bash "$checkout/launch/setup.sh"
exec "$checkout/.venv/bin/python" -m resnet.train recipe=quickstart "$@"
