"""What `import ducat_serve` offers beside loading and predicting: train, evaluate and export, as the commands do.

The commands of `ducat` parse, call what is here, and print.
"""
