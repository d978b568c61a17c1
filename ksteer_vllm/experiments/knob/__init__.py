"""From behaviours in words, or from labelled replies, to a calibrated probe: a knob."""
