"""Plain mathematics below the layers: activations, losses, initializers, penalties, numerical differentiation."""
