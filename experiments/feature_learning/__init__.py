"""Which parametrisations learn features as the width grows, and the limit they learn towards (Yang & Hu 2011.14522)."""
