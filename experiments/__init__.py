"""One folder per paper, one file per figure or claim: `python -m experiments list | run NAME | report`."""
