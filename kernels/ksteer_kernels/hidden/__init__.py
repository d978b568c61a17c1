"""Hidden program: all steps of a method in the H dimensions of a probe."""
