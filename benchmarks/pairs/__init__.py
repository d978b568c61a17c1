"""What `benchmarks.prompt_pairs` is made of: the environments, the dictionary of features, the measures."""
