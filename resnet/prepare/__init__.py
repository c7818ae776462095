"""`python -m resnet.prepare`: TFRecord shards from tars of ImageNet or folders of images."""


def main() -> None:
    """The console script."""
    from resnet.prepare import __main__ as command

    command.main()
