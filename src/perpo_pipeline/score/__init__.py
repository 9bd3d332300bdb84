"""The stage that measures every completion against the truth."""
