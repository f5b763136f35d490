"""The qcow2 format, versions 2 and 3: QEMU's copy-on-write image."""
