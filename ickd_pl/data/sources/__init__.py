"""CIFAR's images from wherever people have them, in one order, and verified whatever container they came in."""
