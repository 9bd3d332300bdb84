"""Draw N completions per prompt, with one of several backends.

sample_prompts       the stage: prompts and a model in, the samples artifact out
backends, backend    the backends by name, and what each must do
*_backend            transformers, vLLM, an OpenAI-compatible server
engines              where parts are sampled: here, in processes, on a Ray cluster
parts, failures      what is on disk, what is still to be sampled, what failed
progress, preview    the progress bar
"""
