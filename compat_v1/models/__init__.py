"""Models whose network is a graph of TensorFlow 1, trained by the engine without a session."""
