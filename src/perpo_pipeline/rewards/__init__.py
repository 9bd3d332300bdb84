"""Discriminative rewards: pure functions of an answer and its ground truth, in [0, 1]."""
