"""Acceptance on real weights: does this machine, with this model, do what is published?

`make acceptance MODEL=llava15` answers 300 test expressions with the base model, whose AP@50 must
lie in a range around the published figure (published.toml), and then trains on 300 lists, which
must raise the mean reward on held-out prompts. If the first part fails, it names the likely cause.
"""
