"""The TF1 graph path: models, freezing, training, audit and porting on tf.compat.v1."""
