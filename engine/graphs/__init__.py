"""What a ``tf.Graph`` says about dataflow and shapes, and what its operations do."""
