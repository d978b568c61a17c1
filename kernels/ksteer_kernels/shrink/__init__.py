"""Shrink: [T, d] -> [T, H], the projection onto the first layer of a probe."""
