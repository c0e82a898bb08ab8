"""Text-to-image transformers of diffusers as flow maps over latents; needs the extra ``fmtt[diffusers]``."""
