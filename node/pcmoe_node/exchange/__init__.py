"""What carries hidden states and gradients between participants."""
