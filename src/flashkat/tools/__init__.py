"""Tools around training: the built-in data set, pictures of the learned functions, a look at the installation."""
