"""Rounds of sampling and training, each on the model of the round before, and what they gain."""
