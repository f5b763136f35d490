"""Disk image formats of vstore: which bytes of which file are which block."""
