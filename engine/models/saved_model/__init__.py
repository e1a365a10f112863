"""Builds ``savedmodel:DIR`` and ``hub:HANDLE``: a SavedModel of TensorFlow 2 as a trunk whose variables can be selected.

Nothing of the file is loaded by TensorFlow: it is read as data (``reading``, ``structures``), the traces that are needed
(``traces``) are checked and flattened into graphs that compute values from values (``flatten``, ``values``), and these run
with variables of our own (``network``). ``holding`` puts single layers of a training trace into inference mode.
"""
