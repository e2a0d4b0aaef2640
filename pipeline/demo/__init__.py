"""The demo world: 64x64 scenes of coloured shapes, and the small diffusion model, reward and judge trained on it."""
