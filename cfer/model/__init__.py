"""The networks, the game that they play, and a model as a file."""
