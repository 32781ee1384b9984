"""Plumbing of the stages: flags, output folders, training runs, devices, processes, logs, pictures."""
