"""`python -m resnet.report`: runs beside published results, as one HTML page."""


def main() -> None:
    """The console script."""
    from resnet.report import __main__ as command

    command.main()
