"""Turn the activations of any model into rationals."""
