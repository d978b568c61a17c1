"""The experiments behind `ksteer layers`, `fit`, `calibrate` and `eval`, one folder each."""
