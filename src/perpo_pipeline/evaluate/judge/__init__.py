"""Answers rated by a language model: win rates and free-text benchmarks (`perpo judge`).

replies.py reads what a judge says, inputs.py the files, one module a task builds its questions and
measures the scores; asking.py talks to the server and stage.py keeps every reply as an artifact.
"""
