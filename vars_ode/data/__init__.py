"""The embedded data set, and pictures as input of a model."""

from vars_ode.data.fashion_mnist import FASHION_MNIST_CLASSES as FASHION_MNIST_CLASSES
from vars_ode.data.fashion_mnist import fashion_mnist as fashion_mnist
from vars_ode.data.labelled import EMBEDDED as EMBEDDED
from vars_ode.data.labelled import labelled_pictures as labelled_pictures
from vars_ode.data.pictures import fitted as fitted
from vars_ode.data.pictures import pictures_for as pictures_for
from vars_ode.data.preprocessing import Normalized as Normalized
from vars_ode.data.preprocessing import Preprocessing as Preprocessing
