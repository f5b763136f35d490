"""Tests of vstore.worker, with real worker processes."""
