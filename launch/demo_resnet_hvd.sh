#!/usr/bin/env bash
# The original's options, as a line of resnet.train: demo_resnet_hvd.sh --help
exec bash "$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)/original.sh" demo_resnet_hvd.sh "$@"
