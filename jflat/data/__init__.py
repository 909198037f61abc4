"""Data: arrays out, nothing else.

- `load_images`, `ImageData`, `IMAGE_SETS`: digits, MNIST, Fashion-MNIST, CIFAR-10 from local files
- `load_omniglot` -> `Characters`, `split_characters`, `sample_episode` -> `Episode`: few-shot tasks
- `take_classes`, `take_subset`, `hold_out`, `with_label_noise`, `standardise`, `downscale`: smaller, noisier, scaled
- `random_crop_flip`: augmentation of a batch, inside a compiled step
- `random_patterns`, `teacher_patterns`, `Patterns`: random inputs with random labels or a teacher's
- `gaussian_mixture`, `mixture_error`, `MixtureSamples`: two Gaussian clouds and the exact error of a linear classifier
- `binary_task`, `BinaryTask`: two classes of images as patterns +-1
- `load_text8`, `encode_text`, `limit_vocabulary` -> `Text`: words as integers; `load_analogies`, `analogy_questions` ->
  `AnalogyQuestions`: a is to b as c is to d
- `Batches`, `split_batches`, `mean_over_batches`, `num_samples`: a data set in batches, and means over it
- `Stream`: a data set that arrives batch by batch from a loader
"""

from jflat.data.augmentation import random_crop_flip
from jflat.data.batches import Batches, Stream, mean_over_batches, num_samples, split_batches
from jflat.data.binary_task import BinaryTask, binary_task
from jflat.data.images import IMAGE_SETS, ImageData, load_images
from jflat.data.mixtures import MixtureSamples, gaussian_mixture, mixture_error
from jflat.data.omniglot import (
    Characters,
    CharacterSplit,
    Episode,
    load_omniglot,
    sample_episode,
    split_characters,
)
from jflat.data.patterns import Patterns, random_patterns, teacher_patterns
from jflat.data.text import (
    AnalogyQuestions,
    Text,
    analogy_questions,
    encode_text,
    limit_vocabulary,
    load_analogies,
    load_text8,
)
from jflat.data.transforms import downscale, hold_out, standardise, take_classes, take_subset, with_label_noise

__all__ = [
    "IMAGE_SETS",
    "AnalogyQuestions",
    "Batches",
    "BinaryTask",
    "CharacterSplit",
    "Characters",
    "Episode",
    "ImageData",
    "MixtureSamples",
    "Patterns",
    "Stream",
    "Text",
    "analogy_questions",
    "binary_task",
    "downscale",
    "encode_text",
    "gaussian_mixture",
    "hold_out",
    "limit_vocabulary",
    "load_analogies",
    "load_images",
    "load_omniglot",
    "load_text8",
    "mean_over_batches",
    "mixture_error",
    "num_samples",
    "random_crop_flip",
    "random_patterns",
    "sample_episode",
    "split_batches",
    "split_characters",
    "standardise",
    "take_classes",
    "take_subset",
    "teacher_patterns",
    "with_label_noise",
]
