"""vubench, the independent load generator, and the tests that run it against `vstore export`."""
