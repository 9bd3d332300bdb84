"""Draw N completions per prompt.

sample_prompts   the stage: prompts and a model in, the samples artifact out
preview          the mean reward that the progress bar shows
"""
