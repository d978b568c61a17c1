"""Calibration: how strongly each method may steer, found in a few batched generations."""
