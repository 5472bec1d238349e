"""The operator's command: `python -m admin`, over the same adapters as the functions."""
