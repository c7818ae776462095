#!/usr/bin/env python3
"""The original's Estimator program by its flags (ResNeXt-101 by default), as a line of resnet.train: imagenet_main.py --help."""

import os
import sys
from pathlib import Path

os.environ.setdefault("PYTHON", sys.executable)
script = Path(__file__).resolve().with_name("original.sh")
os.execvp("bash", ["bash", str(script), "imagenet_main.py", *sys.argv[1:]])
