"""attndrift: see what fine-tuning does to a vision-language model while it happens."""

__version__ = "0.1.0"
