"""Answers to many prompts, from one of several backends, here or on several GPUs or machines.

backends, backend    the backends by name, and what each must do
*_backend            transformers, vLLM, an OpenAI-compatible server
engines              where prompts are answered: here, in processes, on a Ray cluster
answering, parts     what is on disk, what is still to be answered
journal              what is answered of a part that is not whole yet
failures             what failed
progress             the progress bar
"""
