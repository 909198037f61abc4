"""Shaping the learning landscape: which algorithms find wide flat minima, and what those are (1905.07833)."""
