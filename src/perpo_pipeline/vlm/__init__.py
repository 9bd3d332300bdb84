"""Vision-language models: families, files, prompts, decoding, adapters."""
