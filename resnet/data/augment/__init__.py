"""Augmentation: of one image on the host, of a batch on the device."""
