"""The vhost-user transport: a virtio-scsi device for virtual machine monitors, over a UNIX socket."""
