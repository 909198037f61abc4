"""The global landscape: what lies between solutions and around them, and constructions behind the theorems on it."""
