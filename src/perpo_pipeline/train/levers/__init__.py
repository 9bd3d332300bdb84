"""The speed-ups that `train.levers` turns on, each in a module of its own (config/levers.py)."""
