"""`python -m resnet.bench`: speed and memory, measured beside other implementations."""


def main() -> None:
    """The console script."""
    from resnet.bench import __main__ as command

    command.main()
