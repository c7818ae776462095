"""Optimizers, learning-rate schedules, averaged weights and the loss scale."""
