"""One question about one image, asked as a run asks its prompts.

question    an image, a question and perhaps a truth -> a row of prompts
ask_model   the row and a model -> answers, how they were read, and their rewards
"""
