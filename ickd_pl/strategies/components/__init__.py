"""What several methods share: trainable blocks, negatives, checks of shapes and of pairs of networks."""
