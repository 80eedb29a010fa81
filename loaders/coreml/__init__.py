"""CoreML models as ONNX: read without coremltools, written without the onnx package."""
