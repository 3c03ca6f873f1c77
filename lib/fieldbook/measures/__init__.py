"""What is measured on data, models and their gradients."""
