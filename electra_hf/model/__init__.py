"""Settings come in; the pair goes out, generator and discriminator with their objective, as functions of tensors."""
