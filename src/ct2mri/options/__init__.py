"""What each command takes: one dataclass a command, its fields the command's arguments.

The modules here load no heavy library, so that `ct2mri COMMAND --help` answers at once. The same dataclasses
are the arguments of the Python functions behind the commands.
"""
