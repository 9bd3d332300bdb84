"""What a run consists of, and the state that each of its artifacts is in."""
