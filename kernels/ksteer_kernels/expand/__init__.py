"""Expand: [T, H] -> [T, d], the edit of the residual stream."""
