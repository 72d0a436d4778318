"""What a model is worth: recognition, attacks on the code, and the page about an experiment."""
