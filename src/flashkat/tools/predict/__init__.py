"""``flashkat predict``: the classes of images."""
