"""Datasets become prompts: an image, an instruction and the truth, with keys that stay."""
