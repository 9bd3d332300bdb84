"""Evaluation of predictions: metrics and their intervals."""
