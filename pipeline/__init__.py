"""The pipeline: raw images in, a proven model version out."""
