"""The pictures of the documentation, drawn by matplotlib as SVG before each build."""
