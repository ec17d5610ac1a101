"""The speed and the memory beside other libraries, and what a large job takes."""
