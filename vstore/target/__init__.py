"""The target process: one per target, it serves LUNs to one virtual machine and is steered over a control socket."""
