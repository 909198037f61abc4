"""Entropic optimisers and flatness (Chaudhari et al. 1611.01838; Pittorino et al. 2006.07897)."""
