"""`python -m resnet.bench`: speed and memory, measured beside other implementations."""


def main() -> int:
    """The console script; returns the exit status."""
    from resnet.bench import __main__ as command

    return command.main()
