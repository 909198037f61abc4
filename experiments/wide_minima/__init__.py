"""Flat minima of deep linear and ReLU networks: gains, coupling, and the step size (Mulayoff & Michaeli 2002.04710)."""
