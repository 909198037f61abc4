"""The libraries that `benchmarks.curvature` compares: one process each (`worker`), one adapter each (`with_*`)."""
