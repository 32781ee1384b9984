"""The plumbing: flags, folders, files, checkpoints, schedules, logs, devices. Nothing here knows the paper."""


class UserError(Exception):
    """Something the user gave cannot be used: one line that names the flag or file and says what to do."""
