"""The program of every family: the slots of a probe on the device, and a request's row at a layer."""
