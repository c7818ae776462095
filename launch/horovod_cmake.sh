#!/usr/bin/env bash
# The cmake of Horovod's build (HOROVOD_CMAKE): leaves horovod/tensorflow/xla_mpi_ops.cc out of the unpacked source, then calls
# the real one. That file includes headers which TensorFlow's wheels lack since 2.19 (tensorflow#90026). Nothing is lost: without
# GPUs it compiles to nothing, and with them it serves HOROVOD_ENABLE_XLA_OPS, which is off unless asked for.
# Goes when a release of Horovod builds without it (horovod#4302 is open).
set -euo pipefail

sources=${1-}/horovod/tensorflow/CMakeLists.txt
if [[ -f $sources ]]; then sed -i '/xla_mpi_ops\.cc/d' "$sources"; fi
exec cmake "$@"
