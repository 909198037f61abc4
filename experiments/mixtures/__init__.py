"""Classifying two Gaussian clouds, theory and simulation (Mignacco et al. 2002.11544; Baldassi et al. 2010.14761)."""
