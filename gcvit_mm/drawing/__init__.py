"""Pictures: predictions, ground truth, what a model is given, where its backbone looks."""
