"""`python -m resnet.prepare`: TFRecord shards from tars of ImageNet or folders of images."""


def main() -> int:
    """The console script; returns the exit status."""
    from resnet.prepare import __main__ as command

    return command.main()
