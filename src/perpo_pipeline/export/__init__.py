"""A finished run's lists and prompts as the datasets that other training tools read."""
