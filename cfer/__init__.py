"""cfer: facial expressions from the residuals of a compressed video, without the identity."""
