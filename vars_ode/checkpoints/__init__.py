"""Checkpoint files and folders: the authors' and our own, read without executing them, written atomically."""

from vars_ode.checkpoints.files import CheckpointError as CheckpointError
