"""Train ResNets with TensorFlow: one composed configuration in, one trained and recorded model out."""

import importlib.util
import os
import re

__version__ = "0.1.0"
# The environment without the defaults below, which are not for the children of another Python.
INHERITED = dict(os.environ)

# All that two TensorFlows need differently: 2.15 (Python 3.10 and 3.11, Gaudi) has Keras 2 built in; 2.20 (Python 3.12 and 3.13,
# GPUs) has Keras 3, and takes Keras 2 from tf-keras if this is set before its import. The condition can go with 2.15: when Python
# 3.11 ends, in October 2027, if Gaudi is given up then; Habana's last plug-in is for 2.15.
if importlib.util.find_spec("tf_keras"):
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors only; set it to 0 to see everything TensorFlow says


class UserError(ValueError):
    """The user wants something that cannot be done. The message is one line: the knob, its value, the way out.

    Control characters in what it quotes are escaped: they would break the line, or speak to the terminal.
    """

    def __init__(self, message: str) -> None:
        super().__init__(re.sub("[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda match: repr(match[0])[1:-1], message))
