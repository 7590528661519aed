"""Training on adaptively selected subsets."""
