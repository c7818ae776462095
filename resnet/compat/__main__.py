"""`python -m resnet.compat`: the original suite's commands."""

import sys

from resnet.compat.habana import main

sys.exit(main(sys.argv[1:]))
