"""The Lambdas. Each folder holds one `handler.py`; only the repository root may be on `sys.path` (the folder `signal` would shadow the standard module)."""
