"""`python -m experiments.report` in a checkout: the command of resnet.report."""

from resnet.report.__main__ import main

if __name__ == "__main__":
    main()
