"""`python -m resnet.doctor`: what this machine has, what of the suite works on it, and what to install for the rest."""


def main() -> None:
    """The console script."""
    from resnet.doctor import __main__ as command

    command.main()
