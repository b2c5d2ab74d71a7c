"""How far sets of images lie apart, in features of an ONNX graph, and how sure that is."""
