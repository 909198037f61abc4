"""Critical points: finding them, saying what they are, and the networks of which all of them are known.

- `autoencoder_classes` -> `AutoencoderClasses`: every critical point of the deep linear autoencoder, with loss, index
  and nullity; `autoencoder_critical_point`, `autoencoder_loss`, `equivalent_samples`, `match` -> `AutoencoderMatch`
"""

from jflat.critical.linear_autoencoder import (
    AutoencoderClasses,
    AutoencoderMatch,
    AutoencoderWeights,
    autoencoder_classes,
    autoencoder_critical_point,
    autoencoder_loss,
    equivalent_samples,
    match,
)

__all__ = [
    "AutoencoderClasses",
    "AutoencoderMatch",
    "AutoencoderWeights",
    "autoencoder_classes",
    "autoencoder_critical_point",
    "autoencoder_loss",
    "equivalent_samples",
    "match",
]
