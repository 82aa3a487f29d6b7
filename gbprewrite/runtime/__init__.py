"""Running converted models: onnxruntime sessions, arrays, images in and pictures out."""
