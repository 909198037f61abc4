"""Wide flat minima as minima that coalesce around solutions of large margin (Baldassi et al. 2107.01163)."""
