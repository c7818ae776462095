"""What `python -m resnet.report` is made of."""
