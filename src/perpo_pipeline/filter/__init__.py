"""Which lists are worth learning from, and which pair of each where only a pair is wanted."""
