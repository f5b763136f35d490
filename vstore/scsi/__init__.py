"""The SCSI device model: what a logical unit answers to a CDB, with no word of virtio, HTTP or C."""
