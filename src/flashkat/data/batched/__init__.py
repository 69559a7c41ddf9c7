"""Augmentation of whole batches on a GPU, with the random numbers and the results of timm's, image by image."""
