"""The parts of `benchmarks.load_test`: what is sent, what is counted, what is watched."""
