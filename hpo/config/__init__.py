"""Study files as frozen, validated objects."""
