"""Action representations: normalisation, bins, compressed tokens, flow matching and diffusion."""
