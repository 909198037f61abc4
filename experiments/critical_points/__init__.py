"""Critical points of losses, and the gradient-flat points that look like them (Frye et al. 2003.10397)."""
