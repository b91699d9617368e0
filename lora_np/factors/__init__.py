"""Adapters without their base: low-rank factors by layer path, and operations on them."""
