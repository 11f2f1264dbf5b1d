"""What no rule rewrites and a person must see: members of the removed classes, and removed names in strings."""
