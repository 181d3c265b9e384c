"""The train step, the program that runs it on a mesh, and what is measured and kept while it runs."""
