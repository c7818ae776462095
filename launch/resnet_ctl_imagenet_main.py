#!/usr/bin/env python3
"""The original's Keras program, by its flags, as a line of resnet.train: resnet_ctl_imagenet_main.py --help."""

import os
import sys
from pathlib import Path

os.environ.setdefault("PYTHON", sys.executable)
script = Path(__file__).resolve().with_name("original.sh")
os.execvp("bash", ["bash", str(script), "resnet_ctl_imagenet_main.py", *sys.argv[1:]])
