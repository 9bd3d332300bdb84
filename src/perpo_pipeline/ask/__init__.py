"""One question about an image or several, asked as a run asks its prompts.

question    images, a question and perhaps a truth -> a row of prompts
ask_model   the row and a model -> answers, how they were read, and their rewards
"""
