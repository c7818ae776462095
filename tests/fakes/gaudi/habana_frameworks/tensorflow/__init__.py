"""Stands in for Habana's plug-in: the order it asks for is enforced, and "/device:HPU:0" computes on the CPU.

What it enforces was seen on habana-tensorflow 1.14.0.493: loaded late, the process aborts.
"""

import os
import sys


def load_habana_module():
    """Register the HPU. Aborts where the real one would."""
    import tensorflow as tf
    from tensorflow.python.eager import context

    if context.context()._context_handle is not None:
        fail("TensorFlow has been at work before load_habana_module()")
    horovod = sys.modules.get("horovod.tensorflow")
    if horovod and horovod.is_initialized():
        fail("horovod.init() came before load_habana_module()")
    if any(device.device_type == "HPU" for device in tf.config.list_physical_devices()):
        fail("load_habana_module() was called twice")
    from resnet.distributed import device

    known, placed_on = tf.config.list_physical_devices, device.placed_on
    card = context.PhysicalDevice("/physical_device:HPU:0", "HPU")
    tf.config.list_physical_devices = lambda kind=None: (
        [card] if kind == "HPU" else [*known(kind), *([] if kind else [card])]
    )
    device.placed_on = lambda kind: placed_on(kind).replace("CPU:0", f"{kind}:0")
    print("the fake Gaudi was loaded", os.environ.get("TF_BF16_CONVERSION", "-"), flush=True)


def fail(why):
    """As the real plug-in ends."""
    print(f"habana: {why}", file=sys.stderr, flush=True)
    os.abort()
