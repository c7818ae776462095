"""What `python -m resnet.bench` measures, a module each."""
