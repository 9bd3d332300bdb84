"""Datasets become prompts: an image, an instruction and the truth, with stable keys."""
