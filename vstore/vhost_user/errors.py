"""What can go wrong between a front-end and vstore: the message is refused, or the connection ends. Nothing else."""


class RefusalError(Exception):
    """A message is understood and not obeyed: a negative acknowledgement says so, and the connection lives on."""


class ProtocolError(Exception):
    """The front-end broke the protocol in a way that leaves nothing to answer: the connection ends."""
