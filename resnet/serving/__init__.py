"""A trained network as a SavedModel and as an MLflow model."""
