"""Adapters without their base: low-rank factors by layer path, and the algebra that changes them."""
