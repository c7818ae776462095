"""Weights and images that are functions of their names and shapes: the same beside PyTorch as here, and nowhere stored."""

import hashlib

import numpy as np


def uniform(name, shape, low=0.0, high=1.0):
    """Float64 in [low, high)."""
    key = np.frombuffer(hashlib.sha256(name.encode()).digest()[:16], np.uint64)
    return low + (high - low) * np.random.Generator(np.random.Philox(key=key)).random(shape)


def tensor(name, shape):
    """The float32 tensor of timm's name, in PyTorch's layout: batch norm is not the identity, and no sum grows far."""
    if name.endswith("running_var"):
        values = uniform(name, shape, 0.5, 1.5)
    elif len(shape) == 1:
        values = uniform(name, shape, *((0.2, 1.0) if name.endswith("weight") else (-0.5, 0.5)))
    else:
        reach = np.sqrt(6 / np.prod(shape[1:]))  # He's variance, by fan-in
        values = uniform(name, shape, -reach, reach)
    return values.astype(np.float32)


def images(count, height, width):
    """Float32 [B, 3, H, W] of mean 0 and deviation 1."""
    return uniform(f"images {height}x{width}", (count, 3, height, width), -(3**0.5), 3**0.5).astype(np.float32)
