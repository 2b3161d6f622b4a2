"""What can be shared and pruned, and what is to be: the words that every other room speaks."""
