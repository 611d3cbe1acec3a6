"""Data sets to train and to measure on, and pictures as input of a model."""

from vars_ode.data.benchmarks import BENCHMARKS as BENCHMARKS
from vars_ode.data.benchmarks import IMAGENET_C as IMAGENET_C
from vars_ode.data.benchmarks import TIMM_NAMES as TIMM_NAMES
from vars_ode.data.benchmarks import clean_set as clean_set
from vars_ode.data.benchmarks import open_benchmark as open_benchmark
from vars_ode.data.benchmarks import open_timm as open_timm
from vars_ode.data.digits import DIGITS as DIGITS
from vars_ode.data.digits import digits as digits
from vars_ode.data.embedded import EMBEDDED_SETS as EMBEDDED_SETS
from vars_ode.data.embedded import EmbeddedSet as EmbeddedSet
from vars_ode.data.embedded import embedded_set as embedded_set
from vars_ode.data.evaluation_sets import EvaluationSet as EvaluationSet
from vars_ode.data.evaluation_sets import Pictures as Pictures
from vars_ode.data.evaluation_sets import UnreadablePicture as UnreadablePicture
from vars_ode.data.evaluation_sets import readable as readable
from vars_ode.data.evaluation_sets import spread as spread
from vars_ode.data.fashion_mnist import EMBEDDED as EMBEDDED
from vars_ode.data.fashion_mnist import FASHION_MNIST_CLASSES as FASHION_MNIST_CLASSES
from vars_ode.data.fashion_mnist import FULL as FULL
from vars_ode.data.fashion_mnist import fashion_mnist as fashion_mnist
from vars_ode.data.fashion_mnist import full_fashion_mnist as full_fashion_mnist
from vars_ode.data.labelled import labelled_pictures as labelled_pictures
from vars_ode.data.pictures import fitted as fitted
from vars_ode.data.pictures import pictures_for as pictures_for
from vars_ode.data.preprocessing import Normalized as Normalized
from vars_ode.data.preprocessing import Preprocessing as Preprocessing
