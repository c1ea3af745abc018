"""Every picture that fjx draws, as SVG."""
