"""Choose the lists to train on, or one pair per list."""
