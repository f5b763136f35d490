"""Benchmarks: vstore and qemu-storage-daemon, interleaved in one run, so that the ratio means something."""
