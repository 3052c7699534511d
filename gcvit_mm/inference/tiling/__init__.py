"""Large images, tile by tile."""
