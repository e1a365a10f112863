"""Old networks as Keras models, each with the rules that port its checkpoint (``NAME.rules``)."""
