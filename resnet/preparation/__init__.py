"""The parts of `python -m resnet.prepare`: listing, converting, writing, checking, showing."""
