"""Models into folders and files, from which they come back as they were; and out of the authors' files."""

from vars_ode.saving.creating import create_with_weights as create_with_weights
from vars_ode.saving.loading import LoadReport as LoadReport
from vars_ode.saving.loading import found_at as found_at
from vars_ode.saving.loading import has_description as has_description
from vars_ode.saving.loading import load_checkpoint as load_checkpoint
from vars_ode.saving.loading import load_pretrained as load_pretrained
from vars_ode.saving.loading import num_classes_of as num_classes_of
from vars_ode.saving.shipped import list_pretrained as list_pretrained
from vars_ode.saving.shipped import pretrained_folder as pretrained_folder
from vars_ode.saving.writing import save_checkpoint as save_checkpoint
from vars_ode.saving.writing import save_pretrained as save_pretrained
