"""What steering did: success, coherence, side effects, steerability, and who does it better."""
