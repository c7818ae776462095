"""`python -m resnet.report`: runs beside published results, as one HTML page."""


def main() -> int:
    """The console script; returns the exit status."""
    from resnet.report import __main__ as command

    return command.main()
