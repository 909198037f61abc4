"""Data: arrays out, nothing else.

- `load_images`, `ImageData`, `IMAGE_SETS`: digits, MNIST, Fashion-MNIST, CIFAR-10 from local files
- `take_classes`, `take_subset`, `hold_out`, `with_label_noise`, `standardise`, `downscale`: smaller, noisier, scaled
- `Batches`, `split_batches`, `mean_over_batches`, `num_samples`: a data set in batches, and means over it
- `Stream`: a data set that arrives batch by batch from a loader
"""

from jflat.data.batches import Batches, Stream, mean_over_batches, num_samples, split_batches
from jflat.data.images import IMAGE_SETS, ImageData, load_images
from jflat.data.transforms import downscale, hold_out, standardise, take_classes, take_subset, with_label_noise

__all__ = [
    "IMAGE_SETS",
    "Batches",
    "ImageData",
    "Stream",
    "downscale",
    "hold_out",
    "load_images",
    "mean_over_batches",
    "num_samples",
    "split_batches",
    "standardise",
    "take_classes",
    "take_subset",
    "with_label_noise",
]
