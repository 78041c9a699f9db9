"""What the methods share: settings, Lightning tasks, run folders, measurement."""
