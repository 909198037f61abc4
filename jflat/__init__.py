"""jflat: find and measure flat minima of neural networks, in JAX."""
