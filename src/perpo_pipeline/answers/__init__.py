"""What an answer says: box formats and frames, reading answers, checks of truths."""
