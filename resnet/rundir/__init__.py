"""A run's folder: its configuration, lock, metrics and result."""

from resnet.rundir.folder import check_folder, check_init, claim, load, resumed, save

__all__ = ["check_folder", "check_init", "claim", "load", "resumed", "save"]
