"""What operators see: metrics, structured events, usage counts."""
