"""Export: the deployed function as a checked ONNX file."""
