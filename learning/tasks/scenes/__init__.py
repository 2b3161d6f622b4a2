"""Generated scenes: images of a few objects, expressions that refer to one of them, and questions about them."""
