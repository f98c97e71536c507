"""TokenLearner in TensorFlow 2, for images and videos (arXiv 2106.11297)."""
