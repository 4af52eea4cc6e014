"""A committed checkpoint's entries brought onto the image. For the core's own use: nothing is callable from Python."""
