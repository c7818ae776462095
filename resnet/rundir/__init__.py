"""A run's folder: its configuration, lock, metrics and result."""

from resnet.rundir.folder import check_folder, check_init, check_versions, claim, load, resume, save, versions

__all__ = ["check_folder", "check_init", "check_versions", "claim", "load", "resume", "save", "versions"]
