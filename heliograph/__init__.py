"""The rules of Heliograph: pure functions and small state machines over plain data. Standard library only; no I/O, clock, randomness or logging."""
