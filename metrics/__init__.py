"""Metrics of melodies: pure functions, each in a folder that `evaluate.load` reads as well."""
