"""Sweeps, and runs of several ranks: processes that this one starts, watches and stops."""
