"""Fuzzing the device model: bytes read as commands, and the rules that every answer is held to.

    seed --------\\
    Atheris -----+--> bytes --> draws --> bench --> Target.execute --> rules: a status, never an exception ...
    kept cases --/                          |                                 |
                                       byte_model: what the disks should say -/
"""
