"""Base model against adapters: what is measured on their images, how it is compared, and what is left behind."""
