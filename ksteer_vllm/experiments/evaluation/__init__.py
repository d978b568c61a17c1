"""What steering did: success, coherence, side effects, steerability, and which method does it better."""
