"""Sweeps: many runs from one command line, several at a time, and searches that choose them by Optuna."""
