"""The Python services to compare with, each as good as its kind can honestly be."""
