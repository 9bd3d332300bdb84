"""`perpo browse`: a local page to look through a run's lists, samples and predictions.

versions   which artifacts of the run it shows
index      a row per prompt with the numbers that are sorted and filtered
state      a view and its filters as a URL
views      the rows of a state, in order
detail     all about one prompt: the ranked answers, or each model's prediction
images     the images of prompts
pages      HTML from these
server     serves it, read-only, on this machine; file.py writes some lists into one file instead
"""
