"""Training on ranked lists of completions."""
