"""Curvature of trained networks (Sagun et al. 1706.04454, Papyan 1811.07062, Ghorbani et al. 1901.10159 and others)."""
