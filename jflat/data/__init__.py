"""Data: arrays out, nothing else.

- `load_images`, `ImageData`, `IMAGE_SETS`: digits, MNIST, Fashion-MNIST, CIFAR-10 from local files
- `take_classes`, `take_subset`, `hold_out`, `with_label_noise`, `standardise`, `downscale`: smaller, noisier, scaled
- `random_patterns`, `teacher_patterns`, `Patterns`: random inputs with random labels or a teacher's
- `gaussian_mixture`, `mixture_error`, `MixtureSamples`: two Gaussian clouds and the exact error of a linear classifier
- `binary_task`, `BinaryTask`: two classes of images as patterns +-1
- `Batches`, `split_batches`, `mean_over_batches`, `num_samples`: a data set in batches, and means over it
- `Stream`: a data set that arrives batch by batch from a loader
"""

from jflat.data.batches import Batches, Stream, mean_over_batches, num_samples, split_batches
from jflat.data.binary_task import BinaryTask, binary_task
from jflat.data.images import IMAGE_SETS, ImageData, load_images
from jflat.data.mixtures import MixtureSamples, gaussian_mixture, mixture_error
from jflat.data.patterns import Patterns, random_patterns, teacher_patterns
from jflat.data.transforms import downscale, hold_out, standardise, take_classes, take_subset, with_label_noise

__all__ = [
    "IMAGE_SETS",
    "Batches",
    "BinaryTask",
    "ImageData",
    "MixtureSamples",
    "Patterns",
    "Stream",
    "binary_task",
    "downscale",
    "gaussian_mixture",
    "hold_out",
    "load_images",
    "mean_over_batches",
    "mixture_error",
    "num_samples",
    "random_patterns",
    "split_batches",
    "standardise",
    "take_classes",
    "take_subset",
    "teacher_patterns",
    "with_label_noise",
]
