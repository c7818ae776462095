"""Formats of records and of files of images."""
