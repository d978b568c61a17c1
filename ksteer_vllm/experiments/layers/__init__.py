"""Which layer: probes compared at each, by reading and by steering."""
