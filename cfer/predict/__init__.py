"""From a video to its expressions, and what is shown of them."""
