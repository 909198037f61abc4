"""Data: arrays out, nothing else.

- `Batches`, `split_batches`, `mean_over_batches`, `num_samples`: a data set in batches, and means over it
"""

from jflat.data.batches import Batches, mean_over_batches, num_samples, split_batches

__all__ = ["Batches", "mean_over_batches", "num_samples", "split_batches"]
