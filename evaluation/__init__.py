"""What measures a model: likelihood, reconstruction, latent space, samples, operations, listening."""
