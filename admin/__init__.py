"""The operator's command: `heliograph-admin`, over the same adapters as the functions."""
