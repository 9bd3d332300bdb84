"""Completions of many prompts, from one of several backends, here or on several GPUs or machines.

backends, backend    the backends by name, and what each must do
*_backend            transformers, vLLM, an OpenAI-compatible server
engines              where parts are sampled: here, in processes, on a Ray cluster
parts, failures      what is on disk, what is still to be sampled, what failed
progress             the progress bar
"""
