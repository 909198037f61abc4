"""One file per capability against its floor and peers: `python -m benchmarks [NAME ...] [--toy] [--output FILE]`."""
