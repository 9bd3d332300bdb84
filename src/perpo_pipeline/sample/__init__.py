"""Prompts to samples: N completions a prompt, by one of several backends."""
