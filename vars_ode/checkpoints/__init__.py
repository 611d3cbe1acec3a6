"""Checkpoints: the authors' files and our own, read without executing what is in them, written atomically."""

from vars_ode.checkpoints.files import CheckpointError as CheckpointError
from vars_ode.checkpoints.loading import LoadReport as LoadReport
from vars_ode.checkpoints.loading import load_checkpoint as load_checkpoint
from vars_ode.checkpoints.loading import save_checkpoint as save_checkpoint
