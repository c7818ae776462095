"""Metrics, parameters and artifacts on their way to MLflow and TensorBoard."""
