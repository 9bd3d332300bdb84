"""Answers rated by a language model: win rates and free-text benchmarks (`perpo judge`).

inputs.py reads the files and replies.py the judge's replies; one module per benchmark makes the
questions and measures the scores; asking.py sends questions to the server; judge_answers.py stores
every reply as an artifact.
"""
