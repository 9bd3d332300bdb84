"""PerPO: perceptual preference optimisation of vision-language models (arXiv:2502.04371)."""

__version__ = "0.1.0"
