"""What a model is worth: recognition, identity leakage, and the page about an experiment."""
